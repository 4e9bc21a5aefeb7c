//! Reads a session's output as its client would, and is content with nothing but full answers.

use super::super::proto::{
    CHUNK_BLOCK_STATUS, CHUNK_DONE, CHUNK_ERROR, CHUNK_OFFSET_DATA, CMD_BLOCK_STATUS, CMD_READ,
    CONTEXT_ALLOCATION_ID, ChunkHeader, EXPORT_REPLY_BYTES, EXPORT_REPLY_ZEROES, Fields,
    GREETING_BYTES, OPT_EXPORT_NAME, OptionReplyHeader, REP_ACK, SIMPLE_REPLY_MAGIC, SimpleReply,
};
use super::content;
use super::script::Script;

/// Checks all of `output`; returns how many requests were answered.
pub(super) fn output(script: &Script, output: &[u8]) -> u64 {
    let mut fields = Fields::new(output);
    fields.bytes(GREETING_BYTES).expect("a greeting");
    for &option in &script.options {
        option_replies(script, option, &mut fields);
    }
    let mut answered = vec![false; script.requests.len()];
    while !fields.is_empty() {
        let magic = { fields }.u32().expect("a reply's magic");
        let cookie = if magic == SIMPLE_REPLY_MAGIC {
            simple(script, &mut fields)
        } else {
            chunk(script, &mut fields)
        };
        let index = cookie as usize;
        assert!(!answered[index], "request {index} is answered twice");
        answered[index] = true;
    }
    assert!(answered.iter().all(|answered| *answered), "every request is answered");
    answered.len() as u64
}

fn option_replies(script: &Script, option: u32, fields: &mut Fields<'_>) {
    if option == OPT_EXPORT_NAME {
        let zeroes = if script.no_zeroes { 0 } else { EXPORT_REPLY_ZEROES };
        let reply = fields.bytes(EXPORT_REPLY_BYTES + zeroes).expect("an export");
        assert!(reply[EXPORT_REPLY_BYTES..].iter().all(|byte| *byte == 0));
        return;
    }
    loop {
        let head = fields.array().expect("a reply to an option");
        let head = OptionReplyHeader::decode(&head).expect("its magic");
        assert_eq!(head.option, option);
        fields.bytes(head.length as usize).expect("its data");
        if head.kind == REP_ACK || head.kind >> 31 == 1 {
            return;
        }
    }
}

fn simple(script: &Script, fields: &mut Fields<'_>) -> u64 {
    let reply = SimpleReply::decode(&fields.array().expect("a reply")).expect("its magic");
    let request = script.requests[reply.cookie as usize];
    let structured_only = [CMD_READ, CMD_BLOCK_STATUS].contains(&request.command);
    assert!(!script.structured || !structured_only, "content comes in chunks");
    if request.command == CMD_READ && reply.error == 0 {
        let data = fields.bytes(request.length as usize).expect("the data");
        check_content(request.offset, data);
    }
    reply.cookie
}

fn chunk(script: &Script, fields: &mut Fields<'_>) -> u64 {
    assert!(script.structured, "chunks are for those who asked");
    let head = ChunkHeader::decode(&fields.array().expect("a chunk")).expect("its magic");
    let mut body = Fields::new(fields.bytes(head.length as usize).expect("its content"));
    let request = script.requests[head.cookie as usize];
    assert_eq!(head.flags, CHUNK_DONE);
    match head.kind {
        CHUNK_OFFSET_DATA => {
            assert_eq!(request.command, CMD_READ);
            assert_eq!(body.u64(), Some(request.offset));
            check_content(request.offset, body.bytes(request.length as usize).expect("the data"));
        }
        CHUNK_BLOCK_STATUS => {
            assert_eq!(request.command, CMD_BLOCK_STATUS);
            assert_eq!(body.u32(), Some(CONTEXT_ALLOCATION_ID));
            let mut told = 0;
            while !body.is_empty() {
                told += u64::from(body.u32().expect("a length"));
                body.u32().expect("its flags");
            }
            assert!(told > 0 && told <= u64::from(request.length));
        }
        CHUNK_ERROR => {
            assert_ne!(body.u32(), Some(0));
            let length = body.u16().expect("a message's length");
            let message = body.bytes(usize::from(length)).expect("a message");
            assert!(std::str::from_utf8(message).is_ok());
        }
        kind => panic!("chunk of kind {kind}"),
    }
    assert!(body.is_empty());
    head.cookie
}

fn check_content(offset: u64, data: &[u8]) {
    for (at, byte) in data.iter().enumerate() {
        assert_eq!(*byte, content(offset + at as u64));
    }
}
