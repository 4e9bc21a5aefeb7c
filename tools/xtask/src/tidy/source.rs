//! Rules about one Rust source: its head, its length, its functions' lengths, `unsafe`.
//!
//! The rules look at the source with comments and literals blanked out, so that a brace in a
//! string counts for nothing; that is enough of Rust's grammar for all of them.

use super::{File, Problem};

const FILE_LINES_MAX: usize = 700;
const FUNCTION_LINES_MAX: usize = 70;

/// The one crate that may say `unsafe`.
pub(super) const UNSAFE_CRATE: &str = "workers/sys/";

pub(super) fn check(file: &File, problems: &mut Vec<Problem>) {
    let mut report =
        |line: usize, message: String| problems.push(Problem::new(&file.path, line, message));
    if !starts_with_its_idea(&file.text) {
        report(1, "does not start with `//!`, the module's one idea".into());
    }
    let lines = file.text.lines().count();
    if lines > FILE_LINES_MAX {
        report(0, format!("{lines} lines, at most {FILE_LINES_MAX}"));
    }
    let code = blank(&file.text);
    for function in functions(&code) {
        if function.lines > FUNCTION_LINES_MAX {
            let Function { name, lines, .. } = function;
            let message = format!("`{name}` has {lines} lines, at most {FUNCTION_LINES_MAX}");
            report(function.first_line, message);
        }
    }
    if !file.path.starts_with(UNSAFE_CRATE) {
        for (line, _) in words(&code).filter(|(_, word)| *word == "unsafe") {
            report(line, format!("`unsafe` outside {UNSAFE_CRATE}"));
        }
    }
}

/// Only attributes of the module may stand before its `//!`.
fn starts_with_its_idea(text: &str) -> bool {
    text.lines()
        .find(|line| !line.starts_with("#![") && !line.is_empty())
        .is_some_and(|line| line.starts_with("//!"))
}

struct Function<'a> {
    name: &'a str,
    first_line: usize,
    lines: usize,
}

/// All functions with a body in blanked code, nested ones too.
fn functions(code: &str) -> Vec<Function<'_>> {
    let mut found = Vec::new();
    let mut previous = "";
    for (line, word) in words(code) {
        // `fn` of a function pointer's type is followed by a parenthesis, so the next word is
        // not adjacent to it but for white space.
        let start = word.as_ptr().addr() - code.as_ptr().addr();
        if previous == "fn" && code[..start].trim_end().ends_with("fn") {
            let lines = body_end(&code[start..]).map(|end| newlines(&code[start..start + end]));
            found.extend(lines.map(|lines| Function {
                name: word,
                first_line: line,
                lines: lines + 1,
            }));
        }
        previous = word;
    }
    found
}

/// Where the body of the function that starts here ends; nothing for a mere declaration.
fn body_end(code: &str) -> Option<usize> {
    let mut braces = 0_usize;
    let mut brackets = 0_usize;
    for (index, byte) in code.bytes().enumerate() {
        match byte {
            b'(' | b'[' => brackets += 1,
            b')' | b']' => brackets = brackets.saturating_sub(1),
            b';' if braces == 0 && brackets == 0 => return None,
            b'{' => braces += 1,
            b'}' => {
                braces = braces.checked_sub(1)?;
                if braces == 0 && brackets == 0 {
                    return Some(index);
                }
            }
            _ => {}
        }
    }
    None
}

fn newlines(code: &str) -> usize {
    code.bytes().filter(|byte| *byte == b'\n').count()
}

/// Identifiers and keywords of blanked code, with their line numbers.
pub(super) fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    code.split('\n').enumerate().flat_map(|(index, line)| {
        line.split(|character: char| !character.is_alphanumeric() && character != '_')
            .filter(|word| !word.is_empty())
            .map(move |word| (index + 1, word))
    })
}

/// The source with comments and the insides of literals replaced by spaces, byte for byte, with
/// the line ends kept.
pub(super) fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = at + opaque_length(&bytes[at..], last_word_byte(bytes, at));
        if end == at {
            // Outside of comments and literals, what is not ASCII has no meaning for any rule.
            code.push(if bytes[at].is_ascii() { char::from(bytes[at]) } else { ' ' });
            at += 1;
            continue;
        }
        code.extend(bytes[at..end].iter().map(|byte| if *byte == b'\n' { '\n' } else { ' ' }));
        at = end;
    }
    code
}

/// Whether the byte before `at` belongs to a word: then `r"` or `b'` there starts no literal.
fn last_word_byte(bytes: &[u8], at: usize) -> bool {
    at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_')
}

/// The length of the comment or literal that starts here, or 0.
fn opaque_length(rest: &[u8], in_word: bool) -> usize {
    match rest {
        [b'/', b'/', ..] => rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len()),
        [b'/', b'*', ..] => block_comment_length(rest),
        [b'"', ..] => quoted_length(rest, b'"'),
        [b'\'', ..] => character_length(rest),
        [b'r', b'"' | b'#', ..] if !in_word => raw_string_length(rest),
        _ => 0,
    }
}

fn block_comment_length(rest: &[u8]) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

fn quoted_length(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    rest.len().min(at + 1)
}

/// A character literal ends in a quote one character on; a lifetime does not.
fn character_length(rest: &[u8]) -> usize {
    match rest {
        [_, b'\\', ..] => quoted_length(rest, b'\''),
        [_, first, ..] => {
            let width = match first {
                0xf0.. => 4,
                0xe0.. => 3,
                0xc0.. => 2,
                _ => 1,
            };
            if rest.get(1 + width) == Some(&b'\'') { width + 2 } else { 0 }
        }
        _ => 0,
    }
}

fn raw_string_length(rest: &[u8]) -> usize {
    let hashes = rest[1..].iter().take_while(|byte| **byte == b'#').count();
    if rest.get(1 + hashes) != Some(&b'"') {
        return 0;
    }
    let mut end = vec![b'"'];
    end.resize(1 + hashes, b'#');
    let body = 2 + hashes;
    let found = rest[body..].windows(end.len()).position(|window| window == end);
    found.map_or(rest.len(), |position| body + position + end.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems_of(path: &str, text: &str) -> Vec<(usize, String)> {
        let mut problems = Vec::new();
        check(&File { path: path.into(), text: text.into() }, &mut problems);
        problems.into_iter().map(|problem| (problem.line, problem.message)).collect()
    }

    #[test]
    fn a_module_starts_with_its_idea() {
        assert_eq!(problems_of("a.rs", "//! Idea.\n"), []);
        assert_eq!(problems_of("a.rs", "#![forbid(unsafe_code)]\n\n//! Idea.\n"), []);
        assert_eq!(problems_of("a.rs", "// Idea.\n").len(), 1);
        assert_eq!(problems_of("a.rs", "mod a;\n//! Idea.\n").len(), 1);
        assert_eq!(problems_of("a.rs", "").len(), 1);
    }

    #[test]
    fn files_have_at_most_700_lines() {
        let text = |lines: usize| format!("//! Idea.\n{}", "x\n".repeat(lines - 1));
        assert_eq!(problems_of("a.rs", &text(700)), []);
        assert_eq!(problems_of("a.rs", &text(701)), [(0, "701 lines, at most 700".into())]);
    }

    #[test]
    fn functions_have_at_most_70_lines() {
        let text = |lines: usize| {
            let body = "    let c = ('}', \"}\", '\\'', r#\"}\"}\"#); // }\n".repeat(lines - 2);
            format!("//! Idea.\nfn long<'a>(x: [u8; 4]) {{\n{body}}}\nfn short() {{}}\n")
        };
        assert_eq!(problems_of("a.rs", &text(70)), []);
        assert_eq!(problems_of("a.rs", &text(71)), [(2, "`long` has 71 lines, at most 70".into())]);
    }

    #[test]
    fn declarations_and_pointers_are_no_functions() {
        let code = "trait T { fn a(x: [u8; 2]) -> u8; }\nstruct S { f: fn(u8) -> u8, g: u8 }\n";
        assert_eq!(functions(code).len(), 0);
        let nested = functions("fn a() {\n fn b() {\n }\n}\n");
        let found: Vec<_> = nested.iter().map(|f| (f.name, f.first_line, f.lines)).collect();
        assert_eq!(found, [("a", 1, 4), ("b", 2, 2)]);
    }

    #[test]
    fn the_keyword_belongs_to_one_crate() {
        let keyword = concat!("un", "safe");
        let text = format!("//! Idea.\nfn a() {{ {keyword} {{ b() }} }}\n");
        assert_eq!(problems_of("engine/src/a.rs", &text).len(), 1);
        assert_eq!(problems_of("workers/sys/src/a.rs", &text), []);
        let harmless = format!("//! Idea of {keyword}.\n#![forbid({keyword}_code)]\n");
        assert_eq!(problems_of("engine/src/a.rs", &harmless), []);
    }

    #[test]
    fn comments_and_literals_are_blanked() {
        let cases = [
            ("a /* b /* c */ d */ e", "a                   e"),
            ("'{' 'a fn '\\n' '\u{e9}' x", "    'a fn           x"),
            ("\"a\\\"b\" c", "       c"),
            ("r\"\\\" c", "     c"),
            ("for\"x\"", "for   "),
            ("r#type x", "r#type x"),
            ("// a\nb", "    \nb"),
        ];
        for (text, code) in cases {
            assert_eq!(blank(text), code);
        }
    }
}
