//! An ordinary user's own array: no privileges, little memory that may be locked, and still no
//! acknowledged write is lost to `kill -9`.
#![forbid(unsafe_code)]

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use system::{World, program, run, spawn};

/// The user that owns nothing.
const NOBODY: u32 = 65534;
/// What distributions allow a user to lock, in bytes.
const LOCKED_BYTES_MAX: u64 = 8 << 20;

/// Hands everything that an ordinary user's daemon works with to `user`.
fn hand_over(world: &World, user: u32) -> PathBuf {
    let home = world.path("home");
    std::fs::create_dir(&home).expect("the world is writable");
    let private = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(&home, private).expect("it is ours");
    for path in [&home, world.staging()] {
        chown(path, Some(user), Some(user)).expect("it is ours");
    }
    // Where an ordinary user can run it, wherever the build lies.
    std::fs::copy(program("iomd"), world.path("iomd")).expect("there is room");
    home
}

/// The daemon of a user who lives in `home`, with the limits of an ordinary login.
fn daemon(world: &World, home: &PathBuf, as_nobody: bool) -> Command {
    let mut command = Command::new("prlimit");
    command.arg(format!("--memlock={LOCKED_BYTES_MAX}:{LOCKED_BYTES_MAX}"));
    if as_nobody {
        let id = NOBODY.to_string();
        command.args(["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups"]);
        command.args(["--no-new-privs", "--bounding-set", "-all", "--inh-caps", "-all"]);
    }
    command.arg(world.path("iomd")).arg("--staging-dir").arg(world.staging());
    let search_path = std::env::var_os("PATH").unwrap_or_default();
    command.env_clear().env("PATH", search_path).env("HOME", home).current_dir(home);
    command
}

#[test]
fn an_ordinary_user_loses_nothing_to_kills() {
    let mut world = World::new();
    let owner = std::fs::metadata(world.path(".")).expect("it exists").uid();
    let as_nobody = owner == 0;
    let home = hand_over(&world, if as_nobody { NOBODY } else { owner });
    // The places that it chooses by itself when the environment names no other.
    let run_directory = home.join(".local/state/iomd/run");
    let socket = run_directory.join("nbd.sock");
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let oracle = world.path("oracle");
    for round in 0..3 {
        let mut command = daemon(&world, &home, as_nobody);
        world.start_command(&mut command);
        world.daemon().wait_until_ready();
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", world.daemon().pid()));
        let limits = limits.expect("the daemon runs");
        let line = limits.lines().find(|line| line.starts_with("Max locked memory"));
        let words: Vec<&str> = line.expect("it has one").split_whitespace().collect();
        assert_eq!(words[3..5], [&LOCKED_BYTES_MAX.to_string(); 2], "the limit holds");
        if round > 0 {
            let words: [PathBuf; 3] = [uri.as_str().into(), "--verify-only".into(), oracle.clone()];
            run(program("iombench"), &words).expect_success();
            std::fs::remove_file(&oracle).expect("it was just read");
        }
        let mut load = Command::new(program("iombench"));
        load.args([&uri, "--rw", "randwrite", "--bs", "4k", "--iodepth", "32", "--size", "64M"]);
        load.args(["--seed", &round.to_string(), "--runtime", "120"]).arg("--verify").arg(&oracle);
        let mut load = spawn(&mut load);
        std::thread::sleep(Duration::from_millis(700));
        let was_loaded = load.is_running();
        let staged = std::fs::read_dir(world.staging()).expect("it exists").count();
        assert_eq!(staged, 1, "an ordinary user has a staging region");
        world.kill();
        let ended = load.wait(Duration::from_secs(60));
        assert!(was_loaded, "no load at the kill: {ended}");
    }
    let mut command = daemon(&world, &home, as_nobody);
    world.start_command(&mut command);
    world.daemon().wait_until_ready();
    let words: [PathBuf; 3] = [uri.as_str().into(), "--verify-only".into(), oracle];
    run(program("iombench"), &words).expect_success();
    let control = run_directory.join("iomd.sock");
    let status: [PathBuf; 3] = ["status".into(), "--control".into(), control];
    run(program("iomctl"), &status).expect_success();
    world.stop();
    assert_eq!(std::fs::read_dir(world.staging()).expect("it exists").count(), 0);
    let slices = std::fs::read_dir(home.join(".local/state/iomd/demo")).expect("it exists");
    let mut words: Vec<PathBuf> = vec!["check".into()];
    words.extend(slices.map(|entry| entry.expect("it is readable").path()));
    run(program("iomctl"), &words).expect_success();
}
