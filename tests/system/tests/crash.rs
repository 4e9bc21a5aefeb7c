//! `kill -9` under load, again and again: no acknowledged write is lost, at any toughness.
//!
//! `iombench` keeps its oracle in a file outside the victim. Rounds write to disjoint regions in
//! turn, and after each restart the last round of every region is verified, so that damage to
//! data at rest shows too. `IOMD_KILLS` sets the number of rounds.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use system::{Finished, Numbers, World, program, run, spawn};

/// Regions that take turns, and the size of each.
const REGIONS: usize = 6;
const REGION_MIB: usize = 32;
/// Longer than any round: the load never ends by itself.
const LOAD_TIME_S: &str = "120";

fn rounds() -> usize {
    let text = std::env::var("IOMD_KILLS").unwrap_or_else(|_| "8".into());
    text.parse().expect("IOMD_KILLS is a number")
}

/// What one round does; a function of its number alone.
struct Round {
    number: usize,
    mode: &'static str,
    block_size: &'static str,
    depth: &'static str,
    connections: &'static str,
    fua: bool,
    delay: Duration,
    /// How often the restarted daemon is killed again before it has said `ready`.
    kills_in_recovery: u64,
}

impl Round {
    fn new(number: usize) -> Round {
        let mut numbers = Numbers(number as u64);
        let mut pick = |choices: &[&'static str]| {
            choices[usize::try_from(numbers.below(choices.len() as u64)).expect("few choices")]
        };
        Round {
            number,
            mode: pick(&["randwrite", "randwrite", "write", "randrw"]),
            block_size: pick(&["4k", "4k", "512", "16k", "256k", "1M"]),
            depth: pick(&["1", "16", "32", "64"]),
            connections: pick(&["1", "1", "4"]),
            fua: numbers.below(4) == 0,
            delay: Duration::from_millis(150 + numbers.below(1500)),
            kills_in_recovery: numbers.below(3),
        }
    }

    fn state(&self, world: &World) -> PathBuf {
        world.path(&format!("state{}", self.number % REGIONS))
    }

    fn load(&self, world: &World) -> Command {
        let offset = format!("{}M", self.number % REGIONS * REGION_MIB);
        let size = format!("{REGION_MIB}M");
        let seed = self.number.to_string();
        let mut command = Command::new(program("iombench"));
        command.arg(world.uri()).args(["--rw", self.mode, "--bs", self.block_size]);
        command.args(["--iodepth", self.depth, "--connections", self.connections]);
        command.args(["--offset", &offset, "--size", &size, "--seed", &seed]);
        command.args(["--runtime", LOAD_TIME_S]).arg("--verify").arg(self.state(world));
        if self.fua {
            command.arg("--fua");
        }
        command
    }
}

#[track_caller]
fn verify(world: &World, state: &Path) -> Finished {
    let words = [world.uri().into(), "--verify-only".into(), state.as_os_str().to_owned()];
    run(program("iombench"), &words).expect_success()
}

fn kill_under_load(world: &mut World, round: &Round) {
    // A fresh oracle: what an earlier round left in this region is unknown to it.
    let _ = std::fs::remove_file(round.state(world));
    let mut load = spawn(&mut round.load(world));
    std::thread::sleep(round.delay);
    let was_loaded = load.is_running();
    world.kill();
    let ended = load.wait(Duration::from_secs(60));
    assert!(was_loaded, "round {}: no load at the kill: {ended}", round.number);
    assert!(ended.code.is_some_and(|code| code != 0), "the load lost its server: {ended}");
    for _ in 0..round.kills_in_recovery {
        let mut command = world.daemon_command(world.slices());
        world.start_command(&mut command);
        std::thread::sleep(round.delay / 50);
        world.kill();
    }
}

/// The whole story at one toughness.
fn story(toughness: &str, rounds: std::ops::Range<usize>) {
    let mut world = World::serving_with(&["--toughness", toughness]);
    for number in rounds.clone() {
        let round = Round::new(number);
        kill_under_load(&mut world, &round);
        world.start();
        let first = rounds.start.max((number + 1).saturating_sub(REGIONS));
        for earlier in first..=number {
            verify(&world, &Round::new(earlier).state(&world));
        }
        println!("{toughness}: round {number} verified");
    }
    world.stop();
    world.check_offline().expect_success();
}

#[test]
fn kills_at_toughness_durable() {
    story("durable", 0..rounds());
}

#[test]
fn kills_at_toughness_atomic() {
    story("atomic", 1000..1000 + rounds());
}

#[test]
fn kills_at_toughness_relaxed() {
    story("relaxed", 2000..2000 + rounds());
}

#[test]
fn a_killed_array_has_no_problem_that_an_offline_check_could_find() {
    const CLEAN: i32 = 0;
    const CANNOT_TELL: i32 = 7;
    let mut world = World::serving();
    for number in 3000..3003 {
        kill_under_load(&mut world, &Round::new(number));
        let check = world.check_offline();
        assert!([Some(CLEAN), Some(CANNOT_TELL)].contains(&check.code), "{check}");
        world.start();
        verify(&world, &Round::new(number).state(&world));
    }
}

#[test]
fn durable_writes_need_no_staging_region() {
    for (number, toughness, fua) in [(4000, "durable", false), (4001, "atomic", true)] {
        let mut world = World::serving_with(&["--toughness", toughness]);
        let round = Round { mode: "randwrite", fua, kills_in_recovery: 0, ..Round::new(number) };
        kill_under_load(&mut world, &round);
        // As after a reboot: whatever lay in memory is gone.
        for entry in std::fs::read_dir(world.staging()).expect("it exists") {
            std::fs::remove_file(entry.expect("it is readable").path()).expect("it is a file");
        }
        world.start();
        verify(&world, &round.state(&world));
    }
}
