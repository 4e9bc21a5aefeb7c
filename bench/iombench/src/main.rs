//! The load generator: puts load on NBD exports and files, measures it, and verifies what they
//! hold with an oracle that outlives the server.
#![forbid(unsafe_code)]

mod cli;
mod failure;
mod files;
mod guard;
mod job;
mod ledger;
mod nbd;
mod opened;
mod peer;
mod report;
mod run;
mod stream;
mod tally;
mod target;
mod units;
mod verify;

use clap::Parser;
use cli::Cli;
use failure::{Failure, Kind};
use ledger::Ledger;
use opened::Opened;
use report::plot::Curve;
use run::Outcome;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.verify_only {
        Some(state) => verify_only(&cli, state),
        None => load(&cli),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("iombench: {failure}");
            ExitCode::from(failure.kind.exit_code())
        }
    }
}

fn load(cli: &Cli) -> Result<(), Failure> {
    let target = target::parse(&cli.target)?;
    let writes = cli.rw.is_none_or(cli::Rw::writes);
    sys::process::raise_open_files();
    let opened = Opened::open(&target, writes, writes)?;
    let jobs = job::jobs(cli, opened.size())?;
    for job in &jobs {
        opened.check(job.block_size, job.fua, job.flush_every.is_some())?;
    }
    if writes {
        opened.guard(cli.force)?;
    }
    let ledger = match &cli.verify {
        Some(path) => {
            let ledger = Ledger::open(path, jobs[0].offset, jobs[0].size)?;
            let global = opened.flush_is_global() || cli.connections == 1;
            Some(if global { ledger } else { ledger.with_local_flush() })
        }
        None => None,
    };
    let mut outcomes = Vec::new();
    for job in &jobs {
        let outcome = run::run(job, &opened, ledger.as_ref())?;
        let failed = outcome.failure.is_some();
        outcomes.push(outcome);
        if failed {
            break;
        }
    }
    let mismatches = ledger.as_ref().map(Ledger::mismatches);
    tell(cli, &opened, &outcomes, mismatches.as_ref())?;
    if let Some(failure) = outcomes.into_iter().find_map(|outcome| outcome.failure) {
        return Err(failure);
    }
    judge(mismatches.map_or(0, |(count, _)| count))
}

fn judge(mismatches: u64) -> Result<(), Failure> {
    match mismatches {
        0 => Ok(()),
        count => Err(Failure::new(Kind::Verification, format!("{count} reads found wrong data"))),
    }
}

fn tell(
    cli: &Cli,
    opened: &Opened,
    outcomes: &[Outcome],
    mismatches: Option<&(u64, Vec<String>)>,
) -> Result<(), Failure> {
    if cli.json {
        println!("{:#}", report::json::report(&cli.target, opened.size(), outcomes, mismatches));
    } else {
        print!("{}", report::table::table(&cli.target, opened.size(), outcomes));
        for example in mismatches.iter().flat_map(|(_, examples)| examples) {
            println!("wrong data {example}");
        }
    }
    if let Some(path) = &cli.hgrm {
        for outcome in outcomes {
            let path = workload_path(path, outcome, outcomes.len());
            write(&path, &report::hgrm::hgrm(&outcome.tally.payload_latency()))?;
        }
    }
    if let Some(path) = &cli.plot {
        let curves: Vec<Curve> = outcomes.iter().flat_map(curves).collect();
        write(path, &report::plot::svg(&cli.target, &curves))?;
    }
    Ok(())
}

/// One curve for each kind of request of a workload.
fn curves(outcome: &Outcome) -> Vec<Curve> {
    let (rw, bytes) = (outcome.job.rw.name(), f64::from(outcome.job.block_size));
    let label = |side| format!("{rw} {} depth {}: {side}", units::size(bytes), outcome.job.depth);
    let sides = outcome.tally.sides();
    sides.map(|(name, side)| Curve { name: label(name), histogram: side.latency.clone() }).collect()
}

fn workload_path(path: &Path, outcome: &Outcome, workloads: usize) -> PathBuf {
    if workloads == 1 {
        return path.to_owned();
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(outcome.job.rw.name());
    name.into()
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text)
        .map_err(|e| Failure::from_source(Kind::System, path.display().to_string(), e))
}

fn verify_only(cli: &Cli, state: &Path) -> Result<(), Failure> {
    let target = target::parse(&cli.target)?;
    let opened = Opened::open(&target, false, true)?;
    let crash = if cli.power_cut { workload::Crash::PowerCut } else { workload::Crash::Daemon };
    let verified = verify::verify(&opened, state, crash)?;
    if cli.json {
        println!("{:#}", report::json::verified(&cli.target, opened.size(), &verified));
    } else {
        for example in &verified.examples {
            println!("wrong data {example}");
        }
        println!(
            "{} blocks of 4 KiB read, {} known, {} unsettled before: {} wrong reads",
            verified.blocks, verified.known_blocks, verified.unsettled_blocks, verified.mismatches
        );
    }
    judge(verified.mismatches)
}
