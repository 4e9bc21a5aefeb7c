//! Attacks the parser of requests on the control socket.
//!
//! However the bytes are cut, the same requests come out; a refusal is final and has a status of an
//! error; what came out is something that the server can answer.

use crate::mutate::spoil;
use control::http::{HEAD_BYTES_MAX, Parser, Refusal, Request};
use workload::Rng;

const METHODS: [&str; 4] = ["GET", "HEAD", "POST", "DELETE"];
const TARGETS: [&str; 5] =
    ["/status", "/metrics?x=1", "http://h/health", "*", "/a/very/long/path/to/nothing"];
const FIELDS: [&str; 9] = [
    "Host: localhost\r\n",
    "Connection: close\r\n",
    "Content-Length: 5\r\n",
    "Content-Length: 70000\r\n",
    "Content-Length: +5\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Expect: 100-continue\r\n",
    "X: y\r\n",
    "Connection: keep-alive, upgrade\r\n",
];

/// Requests, random and spoilt.
pub fn requests(seed: u64) {
    let rng = &mut Rng::new(seed);
    let mut bytes = vec![];
    for _ in 0..=rng.below(3) {
        request(rng, &mut bytes);
    }
    if rng.percent(70) {
        spoil(rng, &mut bytes);
    }
    let whole = parse(&bytes, |_| usize::MAX);
    let cut = parse(&bytes, |left| 1 + rng.below(left.min(40) as u64) as usize);
    assert_eq!(whole, cut, "the cuts between reads mean nothing");
    for request in &whole.0 {
        assert!(request.path.starts_with('/') && !request.path.contains('?'));
        assert!(!request.method.is_empty() && request.path.len() <= HEAD_BYTES_MAX);
    }
    assert!(whole.1.is_none_or(|refusal| (400..600).contains(&refusal.status)));
}

fn pick<'a>(rng: &mut Rng, of: &[&'a str]) -> &'a str {
    of[rng.below(of.len() as u64) as usize]
}

fn request(rng: &mut Rng, bytes: &mut Vec<u8>) {
    let version = if rng.percent(90) { "1.1" } else { pick(rng, &["1.0", "2.0", "0.9"]) };
    let line = format!("{} {} HTTP/{version}\r\n", pick(rng, &METHODS), pick(rng, &TARGETS));
    bytes.extend_from_slice(line.as_bytes());
    if rng.percent(90) {
        bytes.extend_from_slice(FIELDS[0].as_bytes());
    }
    for _ in 0..rng.below(3) {
        let field = pick(rng, &FIELDS);
        bytes.extend_from_slice(field.as_bytes());
        if field == FIELDS[2] && rng.percent(50) {
            bytes.extend_from_slice(b"\r\nabcde");
            return;
        }
    }
    if rng.percent(3) {
        bytes.extend_from_slice(b"Long: ");
        bytes.resize(bytes.len() + rng.below(10_000) as usize, b'x');
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
}

/// All requests of `bytes`, fed in pieces of the lengths that `step` chooses, and how it ended.
fn parse(bytes: &[u8], mut step: impl FnMut(usize) -> usize) -> (Vec<Request>, Option<Refusal>) {
    let (mut parser, mut all, mut rest) = (Parser::default(), vec![], bytes);
    while !rest.is_empty() {
        let (piece, later) = rest.split_at(step(rest.len()).min(rest.len()));
        rest = later;
        parser.feed(piece);
        loop {
            match parser.next_request() {
                Ok(Some(request)) => all.push(request),
                Ok(None) => break,
                Err(refusal) => return (all, Some(refusal)),
            }
        }
    }
    (all, None)
}
