//! The first minute of a newcomer: `iomd` without arguments, twice, also as an ordinary user.
#![forbid(unsafe_code)]

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::Signal;
use system::{World, program, run};

/// The user that owns nothing.
const NOBODY: u32 = 65534;

/// A newcomer's home: below it all that `iomd` may make.
fn make_home(world: &World, owner: u32) -> PathBuf {
    let home = world.path("home");
    for directory in [&home, &home.join("run")] {
        std::fs::create_dir(directory).expect("the world is writable");
        let private = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(directory, private).expect("it is ours");
        std::os::unix::fs::chown(directory, Some(owner), Some(owner)).expect("it is ours");
    }
    std::os::unix::fs::chown(world.staging(), Some(owner), Some(owner)).expect("it is ours");
    home
}

/// Gives `command` the environment of a user who lives in `home`.
fn settle_in(command: &mut Command, home: &PathBuf) {
    let search_path = std::env::var_os("PATH").unwrap_or_default();
    command.env_clear().env("PATH", search_path).env("HOME", home).current_dir(home);
    command.env("XDG_RUNTIME_DIR", home.join("run"));
    for (variable, place) in [
        ("XDG_STATE_HOME", ".local/state"),
        ("XDG_DATA_HOME", ".local/share"),
        ("XDG_CONFIG_HOME", ".config"),
        ("XDG_CACHE_HOME", ".cache"),
    ] {
        command.env(variable, home.join(place));
    }
}

/// The first NBD URI in what the daemon printed.
fn uri_in(text: &str) -> String {
    let word = text.split_whitespace().find(|word| word.starts_with("nbd"));
    word.unwrap_or_else(|| panic!("no URI in {text}")).trim_end_matches([',', '.', ';']).to_owned()
}

/// Starts the daemon twice by what `command` makes; the second finds what was left at the first.
fn start_twice(world: &mut World, command: impl Fn() -> Command) {
    let mut sizes = Vec::new();
    for round in 0..2 {
        world.start_command(&mut command());
        let ready = world.daemon().wait_until_ready();
        let uri = uri_in(&ready);
        let size = run("nbdinfo", &["--size", &uri]).expect_success().stdout;
        sizes.push(size.trim().parse::<u64>().expect("a number"));
        let first = ["-f", "raw", "-c", "read -P 0 1M 64k", "-c", "write -P 77 1M 64k", &uri];
        let second = ["-f", "raw", "-c", "read -P 77 1M 64k", "-c", "read -P 0 0 1M", &uri];
        run("qemu-io", if round == 0 { &first } else { &second }).expect_success();
        // Ctrl-C.
        let words = world.stop_by(Signal::SIGINT);
        let programs = ["iomctl", "iombench", "nbdinfo", "nbdcopy", "qemu-"];
        let names_one = |line: &&str| programs.iter().any(|program| line.contains(program));
        let commands = words.lines().filter(names_one).count();
        assert!(commands >= 3, "it names three commands to try next: {words}");
    }
    assert_eq!(sizes[0], sizes[1]);
    assert!(sizes[0] >= 64 << 20, "{} bytes are too few to play with", sizes[0]);
}

#[test]
fn a_first_time_user_with_a_state_directory() {
    let mut world = World::new();
    let owner = std::fs::metadata(world.path(".")).expect("it exists").uid();
    let home = make_home(&world, owner);
    let (state, staging) = (world.path("state"), world.staging().to_path_buf());
    let (socket, control) = (world.path("nbd"), world.path("control"));
    start_twice(&mut world, || {
        let mut command = Command::new(program("iomd"));
        settle_in(&mut command, &home);
        command.arg("--state-dir").arg(&state).arg("--staging-dir").arg(&staging);
        command.arg("--nbd").arg(format!("unix:{}", socket.display()));
        command.arg("--control").arg(&control);
        command
    });
    assert!(state.is_dir(), "the data is where it was asked for");
    assert_eq!(std::fs::read_dir(&home).expect("it exists").count(), 1, "only `run` is at home");
}

#[test]
fn an_ordinary_user_without_any_argument() {
    let mut world = World::new();
    let owner = std::fs::metadata(world.path(".")).expect("it exists").uid();
    let user = if owner == 0 { NOBODY } else { owner };
    let home = make_home(&world, user);
    // Where an ordinary user can run it, wherever the build lies.
    let copy = world.path("iomd");
    std::fs::copy(program("iomd"), &copy).expect("there is room");
    let staging = world.staging().to_path_buf();
    start_twice(&mut world, || {
        let mut command = match owner {
            0 => Command::new("setpriv"),
            _ => Command::new(&copy),
        };
        if owner == 0 {
            let id = NOBODY.to_string();
            command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--no-new-privs"]);
            command.arg(&copy);
        }
        settle_in(&mut command, &home);
        // Not an argument that a newcomer needs: it keeps the test out of the shared directory.
        command.arg("--staging-dir").arg(&staging);
        command
    });
    assert!(home.join(".local").is_dir(), "the data is at home");
}
