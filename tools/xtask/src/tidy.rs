//! House rules that neither rustfmt nor clippy knows, checked on all files that git has or would
//! take.

mod crates;
mod lines;
mod source;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::workspace::Workspace;

/// One broken rule.
#[derive(Debug, PartialEq)]
struct Problem {
    /// The file, relative to the root.
    path: String,
    /// Counted from 1; 0 speaks of the file as a whole.
    line: usize,
    message: String,
}

impl Problem {
    fn new(path: &str, line: usize, message: impl Into<String>) -> Problem {
        Problem { path: path.into(), line, message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(formatter, "{}: {}", self.path, self.message),
            line => write!(formatter, "{}:{line}: {}", self.path, self.message),
        }
    }
}

/// A text file of the repository.
struct File {
    /// Relative to the root, with slashes.
    path: String,
    text: String,
}

impl File {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }
}

/// Nothing larger is kept in the repository.
const FILE_SIZE_MAX: u64 = 1 << 20;

/// Checks every rule; prints every problem.
pub fn run(workspace: &Workspace) -> Result<(), String> {
    let mut problems = Vec::new();
    let files = read_files(&workspace.root, &mut problems)?;
    for file in &files {
        lines::check(file, &mut problems);
        if file.is_rust() {
            source::check(file, &mut problems);
        }
    }
    crates::check(&files, &mut problems)?;
    for problem in &problems {
        println!("{problem}");
    }
    match problems.len() {
        0 => Ok(()),
        count => Err(format!("tidy found {count} problems in {} files", files.len())),
    }
}

/// All text files; too large ones become problems, binary ones are left out.
fn read_files(root: &Path, problems: &mut Vec<Problem>) -> Result<Vec<File>, String> {
    let mut files = Vec::new();
    for path in list_files(root)? {
        let absolute = root.join(&path);
        // Deleted but not yet committed, or not a plain file.
        let Some(data) = std::fs::symlink_metadata(&absolute).ok().filter(|data| data.is_file())
        else {
            continue;
        };
        if data.len() > FILE_SIZE_MAX {
            problems.push(Problem::new(&path, 0, "is larger than 1 MiB"));
            continue;
        }
        let bytes = std::fs::read(&absolute).map_err(|error| format!("{path}: {error}"))?;
        match String::from_utf8(bytes) {
            Ok(text) if !text.contains('\0') => files.push(File { path, text }),
            _ if path.ends_with(".rs") => problems.push(Problem::new(&path, 0, "is not text")),
            _ => {}
        }
    }
    Ok(files)
}

/// Files that git has or would take; in an exported tree without git, all but build products.
fn list_files(root: &Path) -> Result<Vec<String>, String> {
    if !root.join(".git").exists() {
        let mut paths = Vec::new();
        walk(root, &PathBuf::new(), &mut paths).map_err(|error| error.to_string())?;
        return Ok(paths);
    }
    // The tree may belong to somebody else, as in containers; we only read it.
    let words = ["-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others"];
    let output = Command::new("git")
        .args(words)
        .arg("--exclude-standard")
        .current_dir(root)
        .output()
        .map_err(|error| format!("cannot start git: {error}"))?;
    if !output.status.success() {
        return Err(format!("git ls-files: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    let text = String::from_utf8(output.stdout).map_err(|_| "a file name is not UTF-8")?;
    Ok(text.split_terminator('\0').map(str::to_owned).collect())
}

fn walk(root: &Path, below: &Path, paths: &mut Vec<String>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(root.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if !entry.file_type()?.is_dir() {
            paths.push(path.to_string_lossy().into_owned());
        } else if entry.file_name() != "target" {
            walk(root, &path, paths)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_files_are_refused_and_binary_ones_left_alone() {
        let root = std::env::temp_dir().join(format!("xtask-tidy-{}", std::process::id()));
        std::fs::create_dir_all(root.join("target")).unwrap();
        std::fs::create_dir_all(root.join("a")).unwrap();
        std::fs::write(root.join("a/large.txt"), vec![b'x'; (1 << 20) + 1]).unwrap();
        std::fs::write(root.join("a/image.bin"), [0, 159, 1]).unwrap();
        std::fs::write(root.join("a/text.md"), "text\n").unwrap();
        std::fs::write(root.join("target/product.md"), "text\n").unwrap();
        let mut problems = Vec::new();
        let files = read_files(&root, &mut problems).unwrap();
        std::fs::remove_dir_all(&root).unwrap();
        assert_eq!(problems, [Problem::new("a/large.txt", 0, "is larger than 1 MiB")]);
        let paths: Vec<_> = files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, ["a/text.md"]);
    }

    #[test]
    fn problems_read_as_compiler_messages_do() {
        assert_eq!(Problem::new("a.rs", 7, "is odd").to_string(), "a.rs:7: is odd");
        assert_eq!(Problem::new("a.rs", 0, "is odd").to_string(), "a.rs: is odd");
    }
}
