//! Where the workspace is and how to run cargo and the built programs in it.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The workspace that this program was started in.
pub struct Workspace {
    /// Directory of the root `Cargo.toml`.
    pub root: PathBuf,
    /// Cargo's target directory, absolute.
    target: PathBuf,
    cargo: OsString,
}

impl Workspace {
    /// Finds the workspace from what cargo says of this package, and the target directory from
    /// this program's own place in it (`TARGET/PROFILE/xtask`).
    pub fn locate() -> Result<Workspace, String> {
        let package = std::env::var_os("CARGO_MANIFEST_DIR")
            .unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let root = Path::new(&package)
            .ancestors()
            .nth(2)
            .filter(|root| root.join("Cargo.toml").is_file())
            .ok_or_else(|| format!("no workspace above {}", Path::new(&package).display()))?
            .to_path_buf();
        let program = std::env::current_exe()
            .map_err(|error| format!("cannot tell where this program is: {error}"))?;
        let target = program
            .ancestors()
            .nth(2)
            .ok_or_else(|| format!("{} is in no target directory", program.display()))?
            .to_path_buf();
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        Ok(Workspace { root, target, cargo })
    }

    /// A cargo command with `words`, at the root, with our target directory.
    pub fn cargo(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.cargo);
        command.args(words).current_dir(&self.root).env("CARGO_TARGET_DIR", &self.target);
        command
    }

    /// A command that runs the release build of the program `name`.
    pub fn release_program(&self, name: &str) -> Command {
        let mut command = Command::new(self.target.join("release").join(name));
        command.current_dir(&self.root);
        command
    }

    /// Builds the program `name` (of the package of that name) and runs it with `words`.
    pub fn build_and_run(&self, name: &str, words: &[OsString]) -> Result<(), String> {
        run(&mut self.cargo(&["build", "--release", "--package", name, "--bin", name]))?;
        run(self.release_program(name).args(words))
    }
}

/// Runs `command` with our standard streams; an error names the command and how it ended.
pub fn run(command: &mut Command) -> Result<(), String> {
    let status = command
        .status()
        .map_err(|error| format!("cannot start `{}`: {error}", describe(command)))?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("`{}` failed: {status}", describe(command))),
    }
}

/// The command as a person would type it.
fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str());
    let words: Vec<_> =
        std::iter::once(name).chain(command.get_args()).map(OsStr::to_string_lossy).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_found() {
        let workspace = Workspace::locate().unwrap();
        assert!(workspace.root.join("tools/xtask/Cargo.toml").is_file());
    }

    #[test]
    fn failures_name_the_command_and_its_end() {
        assert_eq!(run(&mut Command::new("true")), Ok(()));
        let message = run(Command::new("sh").args(["-c", "exit 3"])).unwrap_err();
        assert!(message.starts_with("`sh -c exit 3` failed") && message.contains('3'), "{message}");
        let message = run(&mut Command::new("/nonexistent/program")).unwrap_err();
        assert!(message.starts_with("cannot start `program`"), "{message}");
    }
}
