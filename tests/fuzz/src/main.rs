//! The command line of the fuzzers.
#![forbid(unsafe_code)]

use clap::Parser;
use fuzz::{FUZZERS, Fuzzer, Limit, hunt};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Fuzzers of everything that is parsed.
#[derive(Parser)]
#[command(about)]
struct Options {
    /// The fuzzer to run.
    #[arg(required_unless_present_any = ["smoke", "list"])]
    name: Option<String>,
    /// Run all of them for a moment, always the same cases.
    #[arg(long, conflicts_with_all = ["name", "seed", "for", "iterations"])]
    smoke: bool,
    /// List them.
    #[arg(long, conflicts_with_all = ["name", "smoke"])]
    list: bool,
    /// The first case; the following ones have the following numbers.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long, as in 60s or 5m.
    #[arg(long, value_name = "TIME", value_parser = duration, conflicts_with = "iterations")]
    r#for: Option<Duration>,
    /// How many cases; without this or a time, as many as the smoke run tries.
    #[arg(long, value_name = "N")]
    iterations: Option<u64>,
}

fn duration(text: &str) -> Result<Duration, String> {
    let (digits, unit_s) = match text.as_bytes().last() {
        Some(b's') => (&text[..text.len() - 1], 1),
        Some(b'm') => (&text[..text.len() - 1], 60),
        Some(b'h') => (&text[..text.len() - 1], 3600),
        _ => (text, 1),
    };
    let number: u32 = digits.parse().map_err(|_| "a number and s, m or h, as in 60s")?;
    Ok(Duration::from_secs(u64::from(number) * unit_s))
}

fn main() -> ExitCode {
    let options = Options::parse();
    fuzz::record_panics(options.name.is_some());
    if options.list {
        for fuzzer in FUZZERS {
            println!("{:12} {}", fuzzer.name, fuzzer.about);
        }
        return ExitCode::SUCCESS;
    }
    let Some(name) = &options.name else { return smoke() };
    let Some(fuzzer) = FUZZERS.iter().find(|fuzzer| fuzzer.name == name) else {
        eprintln!("fuzz: no fuzzer `{name}`; see fuzz --list");
        return ExitCode::from(2);
    };
    let cases = Limit::Cases(options.iterations.unwrap_or(fuzzer.smoke_cases));
    let limit = options.r#for.map_or(cases, Limit::Time);
    if run(fuzzer, options.seed, limit) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// All fuzzers, always the same cases; the canary passes by failing.
fn smoke() -> ExitCode {
    let (mut passed, mut failed) = (0, 0);
    for fuzzer in FUZZERS {
        let good = run(fuzzer, 1, Limit::Cases(fuzzer.smoke_cases));
        if good != fuzzer.must_fail {
            passed += 1;
        } else {
            failed += 1;
        }
        match (fuzzer.must_fail, good) {
            (true, false) => println!("{}: it had to fail, and did", fuzzer.name),
            (true, true) => println!("{}: it had to fail, and did not", fuzzer.name),
            _ => {}
        }
    }
    println!("{passed} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs one and says what came of it; whether nothing was found.
fn run(fuzzer: &Fuzzer, seed: u64, limit: Limit) -> bool {
    let start = Instant::now();
    let name = fuzzer.name;
    match hunt(fuzzer, seed, limit) {
        Ok(tried) => {
            println!("{name}: {tried} cases in {:.1} s", start.elapsed().as_secs_f64());
            true
        }
        Err(found) => {
            println!("{name}: case {} failed: {}", found.seed, found.says);
            println!("{name}: reproduce with: fuzz {name} --seed {} --iterations 1", found.seed);
            false
        }
    }
}
