//! Rules about crates: what they may depend on, what their roots say, which files they reach.

use std::collections::{BTreeMap, BTreeSet};

use toml::Table;

use super::{File, Problem, source};

/// A member of the workspace.
struct Member {
    /// Directory relative to the root.
    directory: String,
    name: String,
    manifest: Table,
}

pub(super) fn check(files: &[File], problems: &mut Vec<Problem>) -> Result<(), String> {
    let members = read_members(files)?;
    check_direction(&members, problems);
    let texts: BTreeMap<&str, &str> =
        files.iter().map(|file| (file.path.as_str(), file.text.as_str())).collect();
    let mut reached = BTreeSet::new();
    for member in &members {
        for root in roots(member, &texts) {
            check_root(&root, texts[root.as_str()], problems);
            reach(&root, true, &texts, &mut reached);
        }
    }
    for path in texts.keys().filter(|path| path.ends_with(".rs") && !reached.contains(**path)) {
        problems.push(Problem::new(path, 0, "no `mod` leads to this file"));
    }
    Ok(())
}

/// The members in the order of the root manifest, which is the order of dependency.
fn read_members(files: &[File]) -> Result<Vec<Member>, String> {
    let manifest = |path: &str| -> Result<Table, String> {
        let file = files.iter().find(|file| file.path == path);
        let text = &file.ok_or_else(|| format!("{path} is missing"))?.text;
        text.parse().map_err(|error| format!("{path}: {error}"))
    };
    let root = manifest("Cargo.toml")?;
    let list = root.get("workspace").and_then(|workspace| workspace.get("members"));
    let list = list.and_then(|list| list.as_array()).ok_or("Cargo.toml lists no members")?;
    let mut members = Vec::new();
    for directory in list.iter().filter_map(|directory| directory.as_str()) {
        let manifest = manifest(&format!("{directory}/Cargo.toml"))?;
        let name = manifest.get("package").and_then(|package| package.get("name"));
        let name = name.and_then(|name| name.as_str());
        let name = name.ok_or_else(|| format!("{directory} has no package name"))?.to_owned();
        members.push(Member { directory: directory.to_owned(), name, manifest });
    }
    Ok(members)
}

/// A member depends only on members listed before it.
fn check_direction(members: &[Member], problems: &mut Vec<Problem>) {
    for (index, member) in members.iter().enumerate() {
        for dependency in dependencies(&member.manifest) {
            if members[index..].iter().any(|later| later.name == dependency) {
                let path = format!("{}/Cargo.toml", member.directory);
                let message = format!("depends on `{dependency}`, which is not listed before it");
                problems.push(Problem::new(&path, 0, message));
            }
        }
    }
}

/// Names of the packages that a manifest depends on, for building, tests and single targets too.
fn dependencies(manifest: &Table) -> Vec<String> {
    let mut tables = vec![manifest];
    if let Some(targets) = manifest.get("target").and_then(|target| target.as_table()) {
        tables.extend(targets.values().filter_map(|target| target.as_table()));
    }
    let kinds = ["dependencies", "dev-dependencies", "build-dependencies"];
    let lists = tables.iter().flat_map(|table| kinds.iter().filter_map(|kind| table.get(*kind)));
    lists
        .filter_map(|list| list.as_table())
        .flatten()
        .map(|(key, value)| {
            let renamed = value.get("package").and_then(|package| package.as_str());
            renamed.unwrap_or(key).to_owned()
        })
        .collect()
}

/// The files from which cargo starts compiling: by place, or named in the manifest.
fn roots(member: &Member, texts: &BTreeMap<&str, &str>) -> Vec<String> {
    let directory = &member.directory;
    let mut named = Vec::new();
    for kind in ["lib", "bin", "test", "bench", "example"] {
        let targets = match member.manifest.get(kind) {
            Some(toml::Value::Array(targets)) => targets.clone(),
            Some(target) => vec![target.clone()],
            None => Vec::new(),
        };
        let paths = targets.iter().filter_map(|target| target.get("path")?.as_str());
        named.extend(paths.map(|path| format!("{directory}/{path}")));
    }
    let is_root = |path: &str| {
        let Some(place) = path.strip_prefix(&format!("{directory}/")) else { return false };
        named.iter().any(|named| named == path)
            || ["src/lib.rs", "src/main.rs", "build.rs"].contains(&place)
            || ["src/bin/", "tests/", "benches/", "examples/"].iter().any(|folder| {
                let inside = place.strip_prefix(folder);
                inside.is_some_and(|rest| match rest.split_once('/') {
                    None => rest.ends_with(".rs"),
                    Some((_, file)) => file == "main.rs",
                })
            })
    };
    texts.keys().filter(|path| is_root(path)).map(|path| path.to_string()).collect()
}

fn check_root(path: &str, text: &str, problems: &mut Vec<Problem>) {
    let required = concat!("#![forbid(un", "safe_code)]");
    if !path.starts_with(source::UNSAFE_CRATE) && !text.lines().any(|line| line == required) {
        problems.push(Problem::new(path, 0, format!("a crate's root lacks `{required}`")));
    }
}

/// Follows `mod name;` from `path`. A root's and a `mod.rs`'s modules lie beside it, those of
/// any other file in the directory of its name.
fn reach(path: &str, is_root: bool, texts: &BTreeMap<&str, &str>, reached: &mut BTreeSet<String>) {
    let Some(text) = texts.get(path).filter(|_| reached.insert(path.to_owned())) else { return };
    let beside = path.rsplit_once('/').map_or("", |(directory, _)| directory);
    let below = match is_root || path.ends_with("/mod.rs") {
        true => beside,
        false => path.strip_suffix(".rs").unwrap_or(path),
    };
    let mut attribute = None;
    for (line, code) in text.lines().zip(source::blank(text).lines()) {
        if let Some(rest) = line.trim().strip_prefix("#[path = \"") {
            attribute = rest.split_once('"').map(|(file, _)| file);
            continue;
        }
        let Some(name) = declared_module(code) else { continue };
        match attribute.take() {
            Some(file) => reach(&format!("{beside}/{file}"), false, texts, reached),
            None => {
                reach(&format!("{below}/{name}.rs"), false, texts, reached);
                reach(&format!("{below}/{name}/mod.rs"), false, texts, reached);
            }
        }
    }
}

/// The name in a line like `pub(crate) mod name;`.
fn declared_module(code: &str) -> Option<&str> {
    let declaration = code.trim().strip_suffix(';')?;
    let (before, name) = declaration.rsplit_once(' ')?;
    let keyword = before.rsplit([' ', ']']).next()?;
    (keyword == "mod").then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORBID: &str = concat!("#![forbid(un", "safe_code)]\n");

    /// Problems of a workspace of the two members `a` and `b`, in this order.
    fn problems_of(files: &[(&str, &str)]) -> Vec<String> {
        let mut all = vec![("Cargo.toml", "[workspace]\nmembers = [\"a\", \"b\"]\n")];
        for (path, text) in [
            ("a/Cargo.toml", "[package]\nname = \"a\"\n"),
            ("b/Cargo.toml", "[package]\nname = \"b\"\n"),
            ("a/src/lib.rs", FORBID),
        ] {
            if !files.iter().any(|(given, _)| *given == path) {
                all.push((path, text));
            }
        }
        all.extend(files);
        let files: Vec<_> = all
            .into_iter()
            .map(|(path, text)| File { path: path.into(), text: text.into() })
            .collect();
        let mut problems = Vec::new();
        check(&files, &mut problems).unwrap();
        problems.iter().map(Problem::to_string).collect()
    }

    #[test]
    fn a_member_depends_only_on_earlier_ones() {
        let good = "[package]\nname = \"b\"\n[dependencies]\na.workspace = true\nlibc = \"0\"\n";
        assert_eq!(problems_of(&[("b/Cargo.toml", good)]), [""; 0]);
        for text in [
            "[dependencies]\nb.workspace = true\n",
            "[dev-dependencies]\nb = { path = \"../b\" }\n",
            "[build-dependencies]\nx = { package = \"b\", path = \"../b\" }\n",
            "[target.'cfg(unix)'.dependencies]\nb = \"1\"\n",
        ] {
            let manifest = format!("[package]\nname = \"a\"\n{text}");
            let found = problems_of(&[("a/Cargo.toml", &manifest)]);
            assert_eq!(found, ["a/Cargo.toml: depends on `b`, which is not listed before it"]);
        }
    }

    #[test]
    fn every_root_but_one_crates_forbids() {
        let roots = ["a/src/main.rs", "a/src/bin/x.rs", "a/src/bin/y/main.rs", "a/tests/t.rs"];
        for root in roots {
            let found = problems_of(&[(root, "//! Idea.\n")]);
            assert_eq!(found.len(), 1, "{root}");
            assert!(found[0].starts_with(&format!("{root}: a crate's root lacks")), "{found:?}");
            assert_eq!(problems_of(&[(root, FORBID)]), [""; 0]);
        }
    }

    #[test]
    fn dead_files_are_found() {
        let root = format!("{FORBID}mod one;\n#[cfg(test)] pub(crate) mod two;\n// mod dead;\n");
        let alive = [
            ("a/src/lib.rs", root.as_str()),
            ("a/src/one.rs", "mod deep;\n#[path = \"odd/name.rs\"]\nmod other;\n"),
            ("a/src/one/deep.rs", ""),
            ("a/src/odd/name.rs", ""),
            ("a/src/two/mod.rs", "mod three;\n"),
            ("a/src/two/three.rs", ""),
        ];
        assert_eq!(problems_of(&alive), [""; 0]);
        for dead in ["a/src/dead.rs", "a/src/deep.rs", "a/tests/common/mod.rs", "x.rs"] {
            let mut files = alive.to_vec();
            files.push((dead, ""));
            let message = format!("{dead}: no `mod` leads to this file");
            assert_eq!(problems_of(&files), [message]);
        }
    }

    #[test]
    fn modules_of_tests_lie_beside_them() {
        let root = format!("{FORBID}mod common;\n");
        let files = [("a/tests/t.rs", root.as_str()), ("a/tests/common/mod.rs", "")];
        assert_eq!(problems_of(&files), [""; 0]);
    }

    #[test]
    fn targets_named_in_the_manifest_are_roots() {
        let manifest = "[package]\nname = \"a\"\n[[bin]]\nname = \"x\"\npath = \"odd/x.rs\"\n";
        let files = [("a/Cargo.toml", manifest), ("a/odd/x.rs", FORBID)];
        assert_eq!(problems_of(&files), [""; 0]);
    }
}
