//! Nothing stays behind: processes are killed and directories removed, also after Ctrl-C.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use sys::signal::{Request, Signals};

/// Exit status after a signal, as shells have it for SIGINT.
const STATUS_INTERRUPTED: i32 = 130;

struct Left {
    processes: Vec<u32>,
    directories: Vec<PathBuf>,
}

static LEFT: Mutex<Left> = Mutex::new(Left { processes: Vec::new(), directories: Vec::new() });

fn with_left<T>(act: impl FnOnce(&mut Left) -> T) -> T {
    act(&mut LEFT.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A child of ours runs.
pub fn add_process(pid: u32) {
    with_left(|left| left.processes.push(pid));
}

/// It has ended.
pub fn remove_process(pid: u32) {
    with_left(|left| left.processes.retain(|other| *other != pid));
}

/// A directory of ours was made.
pub fn add_directory(path: PathBuf) {
    with_left(|left| left.directories.push(path));
}

/// Kills and removes what is left.
pub fn clear() {
    with_left(|left| {
        for pid in left.processes.drain(..) {
            // One that has just ended is no error.
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
        for directory in left.directories.drain(..) {
            if let Err(error) = std::fs::remove_dir_all(&directory) {
                eprintln!("figures: {}: {error}", directory.display());
            }
        }
    });
}

/// From now on SIGINT, SIGTERM and SIGHUP end this process with everything cleared. Call it before
/// the first thread and the first child.
pub fn watch_signals() -> Result<(), String> {
    let failed = |error: std::io::Error| format!("signals: {error}");
    let signals = Signals::block().map_err(failed)?;
    std::thread::spawn(move || {
        loop {
            match signals.next() {
                Ok(Some(Request::Stop | Request::Reload)) | Err(_) => break,
                Ok(None) => {
                    let mut watched = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
                    let _ = poll(&mut watched, PollTimeout::NONE);
                }
            }
        }
        clear();
        std::process::exit(STATUS_INTERRUPTED);
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn nothing_is_left() {
        let directory = std::env::temp_dir().join(format!("figures-{}", std::process::id()));
        std::fs::create_dir_all(directory.join("inner")).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        add_process(child.id());
        add_directory(directory.clone());
        clear();
        assert!(!directory.exists());
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    }
}
