//! Whole exchanges, byte by byte: what a client sends and what it must get.

use super::fuzz::driver::{Driver, Manner};
use super::fuzz::script::{Script, context_data, info_data};
use super::fuzz::{Random, SIZE_BYTES, content, exports};
use super::proto::*;
use super::*;

const BOTH: ClientFlags = ClientFlags::all();
/// All transmission flags but DF.
const FLAGS_SIMPLE: u16 = 0b1101_0110_1101;
const FLAGS_STRUCTURED: u16 = 0b1101_1110_1101;

fn connection() -> Connection {
    Connection::new(exports(), Limits::default())
}

/// Plays a session against an eager server, input cut into pieces of `piece_bytes` (0: whole).
fn play_pieces(script: &Script, piece_bytes: usize) -> Driver {
    let manner = Manner { eager: true, ..Manner::default() };
    let mut driver = Driver::new(connection(), script.bytes.clone(), manner, Random::new(1));
    driver.piece_bytes = piece_bytes;
    driver.play();
    driver
}

fn play(script: &Script) -> Driver {
    play_pieces(script, 0)
}

/// What the client gets after the greeting.
fn answer(script: &Script) -> Vec<u8> {
    let output = play(script).output;
    assert_eq!(output[..GREETING_BYTES], *b"NBDMAGICIHAVEOPT\0\x03");
    output[GREETING_BYTES..].to_vec()
}

fn rep(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let length = data.len() as u32;
    let mut bytes = OptionReplyHeader { option, kind, length }.encode().to_vec();
    bytes.extend_from_slice(data);
    bytes
}

fn one_option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut script = Script::new(BOTH);
    script.option(option, data);
    answer(&script)
}

fn structured_option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut script = Script::new(BOTH);
    script.option(OPT_STRUCTURED_REPLY, &[]);
    script.option(option, data);
    let output = answer(&script);
    assert_eq!(output[..20], rep(OPT_STRUCTURED_REPLY, REP_ACK, &[]));
    output[20..].to_vec()
}

/// Kind of the one reply in `output`, which must be an error with a message.
fn only_error(output: &[u8]) -> u32 {
    let (head, message) = output.split_first_chunk().expect("a reply");
    let head = OptionReplyHeader::decode(head).expect("its magic");
    assert_eq!(head.length as usize, message.len());
    assert!(!message.is_empty() && head.kind >> 31 == 1);
    head.kind
}

fn export_info(flags: u16) -> Vec<u8> {
    [&INFO_EXPORT.to_be_bytes()[..], &SIZE_BYTES.to_be_bytes(), &flags.to_be_bytes()].concat()
}

const BLOCK_INFO: [u8; 14] = [0, 3, 0, 0, 0, 1, 0, 0, 0x10, 0, 2, 0, 0, 0];

/// A session in transmission; the answer's first `negotiation` bytes are not interesting.
fn transmission(structured: bool) -> Script {
    let mut script = Script::new(BOTH);
    if structured {
        script.option(OPT_STRUCTURED_REPLY, &[]);
        script.option(OPT_SET_META_CONTEXT, &context_data(b"", &[CONTEXT_ALLOCATION]));
    }
    script.option(OPT_EXPORT_NAME, b"");
    script
}

/// What is answered to one request.
fn one_request(structured: bool, command: u16, flags: u16, offset: u64, length: u32) -> Vec<u8> {
    let mut script = transmission(structured);
    let negotiation = answer(&script).len();
    script.request(command, flags, offset, length);
    answer(&script)[negotiation..].to_vec()
}

fn simple_reply(error: u32) -> Vec<u8> {
    SimpleReply { error, cookie: 0 }.encode().to_vec()
}

#[test]
fn export_name_with_and_without_zeroes() {
    for name in [&b""[..], b"array"] {
        let mut script = Script::new(ClientFlags::FIXED_NEWSTYLE);
        script.option(OPT_EXPORT_NAME, name);
        let mut golden = SIZE_BYTES.to_be_bytes().to_vec();
        golden.extend_from_slice(&FLAGS_SIMPLE.to_be_bytes());
        assert_eq!(one_option(OPT_EXPORT_NAME, name), golden);
        golden.extend_from_slice(&[0; 124]);
        assert_eq!(answer(&script), golden);
    }
}

#[test]
fn export_name_is_the_one_option_of_old_clients() {
    let mut script = Script::new(ClientFlags::empty());
    script.option(OPT_EXPORT_NAME, b"array");
    assert_eq!(answer(&script).len(), 134);
    let mut script = Script::new(ClientFlags::empty());
    script.option(OPT_LIST, b"");
    assert_eq!(play(&script).close, Some(CloseReason::NotFixedNewstyle));
}

#[test]
fn an_unknown_export_is_refused_or_ends_the_connection() {
    for name in [&b"nothing"[..], b"array\0", b"Array", &[0xff; 4096]] {
        let mut script = Script::new(BOTH);
        script.option(OPT_EXPORT_NAME, name);
        assert_eq!(play(&script).close, Some(CloseReason::UnknownExport));
        for option in [OPT_INFO, OPT_GO] {
            assert_eq!(only_error(&one_option(option, &info_data(name, &[]))), REP_ERR_UNKNOWN);
        }
        let data = context_data(name, &[]);
        for option in [OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT] {
            assert_eq!(only_error(&structured_option(option, &data)), REP_ERR_UNKNOWN);
        }
    }
}

#[test]
fn list_names_the_array() {
    let mut golden = rep(OPT_LIST, REP_SERVER, b"\0\0\0\x05array");
    golden.extend(rep(OPT_LIST, REP_ACK, &[]));
    assert_eq!(one_option(OPT_LIST, &[]), golden);
    assert_eq!(only_error(&one_option(OPT_LIST, &[0])), REP_ERR_INVALID);
}

#[test]
fn info_and_go_tell_what_is_asked() {
    for option in [OPT_INFO, OPT_GO] {
        let mut golden = rep(option, REP_INFO, &export_info(FLAGS_SIMPLE));
        golden.extend(rep(option, REP_INFO, &BLOCK_INFO));
        golden.extend(rep(option, REP_ACK, &[]));
        assert_eq!(one_option(option, &info_data(b"", &[])), golden);

        let mut golden = rep(option, REP_INFO, &export_info(FLAGS_STRUCTURED));
        golden.extend(rep(option, REP_INFO, b"\0\x01array"));
        golden.extend(rep(option, REP_INFO, b"\0\x02five slices"));
        golden.extend(rep(option, REP_INFO, &BLOCK_INFO));
        golden.extend(rep(option, REP_ACK, &[]));
        assert_eq!(structured_option(option, &info_data(b"array", &[3, 9, 2, 1, 1])), golden);
    }
}

#[test]
fn malformed_option_data_are_invalid() {
    let good = info_data(b"array", &[1]);
    let mut longer = good.clone();
    longer.push(0);
    let mut count = good.clone();
    count[10] = 9;
    let huge_name = [0xff, 0xff, 0xff, 0xff, 0, 0];
    for data in [&good[..good.len() - 1], &longer, &count, &[], &[0], &huge_name] {
        assert_eq!(only_error(&one_option(OPT_GO, data)), REP_ERR_INVALID);
        assert_eq!(only_error(&one_option(OPT_INFO, data)), REP_ERR_INVALID);
    }
    let good = context_data(b"array", &[CONTEXT_ALLOCATION]);
    let mut count = good.clone();
    count[12] = 200;
    for data in [&good[..good.len() - 1], &count, &[], &huge_name] {
        for option in [OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT] {
            assert_eq!(only_error(&structured_option(option, data)), REP_ERR_INVALID);
        }
    }
    assert_eq!(only_error(&one_option(OPT_STRUCTURED_REPLY, &[1])), REP_ERR_INVALID);
}

#[test]
fn contexts_are_listed_and_set() {
    let context = |option, id: u8| {
        let mut golden =
            rep(option, REP_META_CONTEXT, &[&[0, 0, 0, id], CONTEXT_ALLOCATION].concat());
        golden.extend(rep(option, REP_ACK, &[]));
        golden
    };
    let none = |option| rep(option, REP_ACK, &[]);
    let (list, set) = (OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT);
    let cases: [(&[&[u8]], bool, bool); 6] = [
        (&[], true, false),
        (&[b"base:"], true, false),
        (&[CONTEXT_ALLOCATION], true, true),
        (&[b"x-else:", CONTEXT_ALLOCATION], true, true),
        (&[b"base:allocatio"], false, false),
        (&[b"qemu:dirty-bitmap:x", b""], false, false),
    ];
    for (queries, listed, chosen) in cases {
        let data = context_data(b"array", queries);
        let golden = if listed { context(list, 0) } else { none(list) };
        assert_eq!(structured_option(list, &data), golden, "{queries:?}");
        let golden = if chosen { context(set, 1) } else { none(set) };
        assert_eq!(structured_option(set, &data), golden, "{queries:?}");
        assert_eq!(only_error(&one_option(set, &data)), REP_ERR_INVALID);
        assert_eq!(only_error(&one_option(list, &data)), REP_ERR_INVALID);
    }
}

#[test]
fn a_context_holds_for_its_name_and_the_last_choice() {
    let chosen = context_data(b"array", &[CONTEXT_ALLOCATION]);
    let nothing = context_data(b"array", &[]);
    let cases = [
        (vec![&chosen[..]], &b"array"[..], true),
        (vec![&chosen], b"", false),
        (vec![&chosen, &nothing], b"array", false),
        (vec![&chosen, &chosen[..7]], b"array", false),
        (vec![&nothing, &chosen], b"array", true),
    ];
    for (choices, name, holds) in cases {
        let mut script = Script::new(BOTH);
        script.option(OPT_STRUCTURED_REPLY, &[]);
        for choice in choices {
            script.option(OPT_SET_META_CONTEXT, choice);
        }
        script.option(OPT_GO, &info_data(name, &[]));
        script.request(CMD_BLOCK_STATUS, 0, 0, 4096);
        assert_eq!(play(&script).submitted.len(), usize::from(holds));
    }
}

#[test]
fn abort_is_acknowledged_and_ends() {
    let mut script = Script::new(BOTH);
    script.option(OPT_ABORT, &[]);
    script.option(OPT_LIST, &[]);
    assert_eq!(answer(&script), rep(OPT_ABORT, REP_ACK, &[]));
    assert_eq!(play(&script).close, Some(CloseReason::Aborted));
}

#[test]
fn unknown_options_are_unsupported() {
    for option in [0, 4, OPT_STARTTLS, 8 + 0x100, 11, 12, u32::MAX] {
        assert_eq!(only_error(&one_option(option, b"whatever")), REP_ERR_UNSUP);
    }
}

#[test]
fn long_options_are_skipped_and_longer_ones_end_the_connection() {
    for (length, kind) in
        [(OPTION_BYTES_MAX, REP_ERR_UNSUP), (OPTION_BYTES_MAX + 1, REP_ERR_TOO_BIG)]
    {
        let mut script = Script::new(BOTH);
        script.option(999, &vec![7; length]);
        assert_eq!(only_error(&answer(&script)), kind);
        script.option(OPT_GO, &info_data(b"", &[]));
        script.request(CMD_FLUSH, 0, 0, 0);
        assert_eq!(play(&script).submitted.len(), 1);
    }
    let mut script = Script::new(BOTH);
    script.bytes.extend(OptionHeader { option: 999, length: OPTION_SKIP_BYTES_MAX + 1 }.encode());
    assert_eq!(play(&script).close, Some(CloseReason::OptionTooLong));
    let mut script = Script::new(BOTH);
    script.option(OPT_EXPORT_NAME, &vec![b'x'; OPTION_BYTES_MAX + 1]);
    assert_eq!(play(&script).close, Some(CloseReason::UnknownExport));
}

#[test]
fn an_option_flood_ends_the_connection() {
    let mut script = Script::new(BOTH);
    for _ in 0..OPTIONS_MAX {
        script.option(OPT_LIST, &[]);
    }
    assert_eq!(play(&script).close, Some(CloseReason::EndOfStream));
    script.option(OPT_LIST, &[]);
    assert_eq!(play(&script).close, Some(CloseReason::TooManyOptions));
}

#[test]
fn wrong_magic_and_flags_end_the_connection() {
    let close_of =
        |bytes: &[u8]| play(&Script { bytes: bytes.to_vec(), ..Script::default() }).close;
    assert_eq!(close_of(&[0, 0, 0, 4]), Some(CloseReason::UnknownClientFlags));
    assert_eq!(close_of(&[0x80, 0, 0, 3]), Some(CloseReason::UnknownClientFlags));
    assert_eq!(close_of(b"\0\0\0\x03IHAVEOPS\0\0\0\x03\0\0\0\0"), Some(CloseReason::BadMagic));
    assert_eq!(close_of(b"GET / HTTP/1.1\r\n"), Some(CloseReason::UnknownClientFlags));
    let mut script = transmission(false);
    script.bytes.extend([0x25, 0x60, 0x95, 0x14]);
    script.bytes.extend([0; 24]);
    assert_eq!(play(&script).close, Some(CloseReason::BadMagic));
}

#[test]
fn the_end_of_the_stream_is_orderly_only_between_messages() {
    let mut script = transmission(true);
    script.request(CMD_WRITE, 0, 0, 100);
    let header_at = script.bytes.len() - 128;
    for length in 0..=script.bytes.len() {
        let cut = Script { bytes: script.bytes[..length].to_vec(), ..Script::default() };
        let driver = play(&cut);
        let ends = [0, 4, 20, 20 + 16 + 27, script.bytes.len() - 128, script.bytes.len()];
        let reason =
            if ends.contains(&length) { CloseReason::EndOfStream } else { CloseReason::Truncated };
        assert_eq!(driver.close, Some(reason), "after {length} of {}", script.bytes.len());
        assert_eq!(driver.requests, u64::from(length >= header_at + 28));
        assert_eq!(driver.submitted.len(), usize::from(length == script.bytes.len()));
    }
}

#[test]
fn reads_return_data() {
    let data: Vec<u8> = (5..12).map(content).collect();
    let golden = [simple_reply(0), data.clone()].concat();
    assert_eq!(one_request(false, CMD_READ, 0, 5, 7), golden);
    let header = ChunkHeader { flags: CHUNK_DONE, kind: CHUNK_OFFSET_DATA, cookie: 0, length: 15 };
    let golden = [&header.encode()[..], &5u64.to_be_bytes(), &data].concat();
    assert_eq!(one_request(true, CMD_READ, 0, 5, 7), golden);
    assert_eq!(one_request(true, CMD_READ, CommandFlags::DF.bits(), 5, 7), golden);
}

#[test]
fn commands_without_content_get_simple_replies() {
    for structured in [false, true] {
        for command in [CMD_WRITE, CMD_FLUSH, CMD_TRIM, CMD_CACHE, CMD_WRITE_ZEROES] {
            let output = one_request(structured, command, 1, 512, 4096);
            assert_eq!(output, simple_reply(0), "command {command}");
        }
    }
}

#[test]
fn block_status_tells_extents() {
    let golden = |extents: &[u32]| {
        let length = 4 + 4 * extents.len() as u32;
        let header = ChunkHeader { flags: 1, kind: CHUNK_BLOCK_STATUS, cookie: 0, length };
        let mut bytes = [&header.encode()[..], &[0, 0, 0, 1]].concat();
        bytes.extend(extents.iter().flat_map(|number| number.to_be_bytes()));
        bytes
    };
    let whole = one_request(true, CMD_BLOCK_STATUS, 0, 0, 8192);
    assert_eq!(whole, golden(&[4096, 0, 4096, 3]));
    let one = one_request(true, CMD_BLOCK_STATUS, CommandFlags::REQ_ONE.bits(), 0, 8192);
    assert_eq!(one, golden(&[4096, 0]));
}

#[test]
fn refusals_are_simple_errors_or_error_chunks() {
    let (flag, past) = (1 << 9, SIZE_BYTES);
    let cases = [
        (CMD_READ, 0, 0, 0, 22),
        (CMD_READ, flag, 0, 1, 22),
        (CMD_READ, 0, past, 1, 22),
        (CMD_READ, 0, u64::MAX, 2, 22),
        (CMD_WRITE, 0, 0, 0, 22),
        (CMD_WRITE, flag, 0, 100, 22),
        (CMD_WRITE, 0, past - 99, 100, 28),
        (CMD_WRITE_ZEROES, 0, past, 1, 28),
        (CMD_TRIM, 0, past, 1, 22),
        (77, 0, 0, 0, 22),
    ];
    for (command, flags, offset, length, error) in cases {
        let output = one_request(false, command, flags, offset, length);
        assert_eq!(output, simple_reply(error), "command {command}");
        let output = one_request(true, command, flags, offset, length);
        let header = ChunkHeader::decode(output.first_chunk().expect("a chunk")).expect("magic");
        assert_eq!((header.flags, header.kind), (CHUNK_DONE, CHUNK_ERROR));
        assert_eq!(header.length as usize + 20, output.len());
        assert_eq!(output[20..24], error.to_be_bytes());
        assert!(std::str::from_utf8(&output[26..]).is_ok_and(|message| !message.is_empty()));
    }
}

#[test]
fn a_refused_write_is_skipped_and_what_follows_is_served() {
    let mut script = transmission(false);
    script.request(CMD_WRITE, 0, SIZE_BYTES, 100_000);
    script.request(CMD_WRITE, 0, 7, 100_000);
    let driver = play(&script);
    assert_eq!(driver.submitted.len(), 1);
    assert_eq!(driver.submitted[0].1, (7..100_007).map(content).collect::<Vec<u8>>());
}

#[test]
fn a_payload_above_the_maximum_ends_the_connection() {
    let mut script = transmission(false);
    let length = (32 << 20) + 1;
    let header = RequestHeader { flags: 0, command: CMD_WRITE, cookie: 0, offset: 0, length };
    script.bytes.extend(header.encode());
    assert_eq!(play(&script).close, Some(CloseReason::PayloadTooLong));
}

#[test]
fn disconnect_answers_what_is_in_flight_and_nothing_after() {
    let mut script = transmission(false);
    script.request(CMD_READ, 0, 0, 4096);
    script.request(CMD_FLUSH, 0, 0, 0);
    script.disconnect();
    script.request(CMD_FLUSH, 0, 0, 0);
    let driver = play(&script);
    assert_eq!(driver.close, Some(CloseReason::Disconnected));
    assert_eq!(driver.requests, 2);
    assert_eq!(driver.output.len(), GREETING_BYTES + 10 + 16 + 4096 + 16);
}

#[test]
fn the_same_happens_however_the_input_is_cut() {
    for seed in 0..20 {
        let script = Script::random(&mut Random::new(seed));
        let whole = play(&script);
        for piece_bytes in [1, 2, 3, 15, 16, 17, 27, 28, 29, 1000, 4097] {
            let cut = play_pieces(&script, piece_bytes);
            assert!(cut.output == whole.output, "seed {seed}, pieces of {piece_bytes}");
            assert!(cut.submitted == whole.submitted, "seed {seed}, pieces of {piece_bytes}");
            assert_eq!(cut.close, whole.close);
        }
    }
}

/// Feeds `bytes` through the stream buffer until it takes no more; returns how many were taken.
fn feed(connection: &mut Connection, bytes: &[u8]) -> usize {
    let mut fed = 0;
    while fed < bytes.len() {
        let ReceiveSpace::Stream(space) = connection.receive_space() else { break };
        let length = space.len().min(bytes.len() - fed);
        space[..length].copy_from_slice(&bytes[fed..fed + length]);
        connection.received_stream(length);
        fed += length;
    }
    fed
}

fn next_slot(connection: &mut Connection) -> Slot {
    match connection.next_event() {
        Some(Event::Request { slot, .. }) => slot,
        other => panic!("{other:?}"),
    }
}

fn send_all(connection: &mut Connection) -> usize {
    let length = connection.outgoing(usize::MAX).map(|segment| segment.length()).sum();
    connection.sent(length);
    length
}

#[test]
fn a_large_payload_goes_straight_to_its_place_and_only_when_granted() {
    let mut connection = connection();
    let mut script = transmission(false);
    script.request(CMD_WRITE, 0, 0, 100_000);
    let payload_at = script.bytes.len() - 100_000;
    assert_eq!(feed(&mut connection, &script.bytes[..payload_at + 10]), payload_at + 10);
    let slot = next_slot(&mut connection);
    assert_eq!(connection.next_event(), None);
    assert_eq!(connection.receive_space(), ReceiveSpace::Nothing);
    connection.grant(slot);
    let event = connection.next_event().expect("what is in the buffer");
    let Event::Payload { at: 0, bytes, .. } = event else { panic!("{event:?}") };
    assert_eq!(*connection.stream_bytes(bytes), script.bytes[payload_at..payload_at + 10]);
    assert_eq!(connection.next_event(), None);
    let rest = ReceiveSpace::Payload { slot, at: 10, length: 99_990 };
    assert_eq!(connection.receive_space(), rest);
    connection.received_payload(90_000);
    assert_eq!(connection.next_event(), None);
    assert!(matches!(connection.receive_space(), ReceiveSpace::Stream(_)), "little is left");
    assert_eq!(feed(&mut connection, &[0; 9_990]), 9_990);
    let event = connection.next_event().expect("the rest");
    assert!(matches!(event, Event::Payload { at: 90_010, .. }), "{event:?}");
    assert_eq!(connection.next_event(), Some(Event::PayloadComplete { slot }));
}

#[test]
fn replies_are_gathered_and_a_client_that_never_reads_is_heard_no_further() {
    let mut connection = connection();
    let memory_bytes = connection.memory_bytes();
    let script = transmission(true);
    feed(&mut connection, &script.bytes);
    assert_eq!(connection.next_event(), None);
    let mut script = Script::default();
    for _ in 0..10_000 {
        script.request(CMD_TRIM, 0, 0, 1);
    }
    let mut slots = Vec::new();
    let mut fed = 0;
    loop {
        let now = feed(&mut connection, &script.bytes[fed..]);
        fed += now;
        while let Some(event) = connection.next_event() {
            let Event::Request { slot, .. } = event else { panic!("{event:?}") };
            slots.push(slot);
            connection.reply(slot, Outcome::Error(NbdError::InputOutput));
        }
        if now == 0 {
            break;
        }
    }
    assert_eq!(slots.len(), 128);
    assert!(fed <= 128 * 28 + (32 << 10));
    assert_eq!(connection.memory_bytes(), memory_bytes);
    assert_eq!(connection.outgoing(usize::MAX).count(), 1, "all replies are one piece");
    send_all(&mut connection);
    for slot in slots {
        assert_eq!(connection.next_event(), Some(Event::Released { slot }));
    }
    next_slot(&mut connection);
}

#[test]
fn options_are_answered_no_faster_than_their_answers_are_read() {
    let limits = Limits { requests_max: 1, ..Limits::default() };
    let mut connection = Connection::new(exports(), limits);
    let mut script = Script::new(BOTH);
    for _ in 0..OPTIONS_MAX {
        script.option(OPT_INFO, &info_data(b"", &[INFO_NAME, INFO_DESCRIPTION]));
    }
    let (mut fed, mut sent, mut rounds) = (0, 0, 0);
    loop {
        fed += feed(&mut connection, &script.bytes[fed..]);
        assert_eq!(connection.next_event(), None);
        let now = send_all(&mut connection);
        assert!(now < 2048);
        sent += now;
        rounds += 1;
        if now == 0 {
            break;
        }
    }
    assert!(rounds > 10);
    let bytes = (sent - GREETING_BYTES) / OPTIONS_MAX as usize;
    assert_eq!(bytes, 32 + 27 + 33 + 34 + 20);
}

#[test]
fn a_write_refused_by_the_server_is_skipped_and_answered() {
    let mut connection = connection();
    let mut script = transmission(false);
    script.request(CMD_WRITE, 0, 0, 100_000);
    let payload_at = script.bytes.len() - 100_000;
    feed(&mut connection, &script.bytes[..payload_at]);
    let slot = next_slot(&mut connection);
    send_all(&mut connection);
    connection.reply(slot, Outcome::Error(NbdError::NoMemory));
    let mut at = payload_at;
    while at < script.bytes.len() {
        assert_eq!(connection.outgoing(9).count(), 0, "answered after its payload");
        at += feed(&mut connection, &script.bytes[at..script.bytes.len().min(at + 30_000)]);
        assert_eq!(connection.next_event(), None);
    }
    assert_eq!(send_all(&mut connection), 16);
    assert_eq!(connection.next_event(), Some(Event::Released { slot }));
}

#[test]
fn a_dead_client_frees_half_written_requests_and_waits_for_submitted_ones() {
    let mut connection = connection();
    let mut script = transmission(false);
    script.request(CMD_READ, 0, 0, 512);
    script.request(CMD_READ, 0, 0, 512);
    script.request(CMD_WRITE, 0, 0, 50_000);
    let cut = script.bytes.len() - 20_000;
    feed(&mut connection, &script.bytes[..cut.min(32 << 10)]);
    let [submitted, answered, written] = [(); 3].map(|()| next_slot(&mut connection));
    connection.grant(written);
    connection.reply(answered, Outcome::Data);
    assert!(matches!(connection.next_event(), Some(Event::Payload { .. })));
    connection.end_of_stream();
    assert_eq!(connection.next_event(), Some(Event::Close(CloseReason::Truncated)));
    assert_eq!(connection.outgoing(9).count(), 0);
    assert_eq!(connection.next_event(), None, "sends may be in flight");
    connection.closed();
    let mut released = Vec::new();
    while let Some(Event::Released { slot }) = connection.next_event() {
        released.push(slot);
    }
    assert_eq!(released, [answered, written]);
    assert!(!connection.is_finished());
    connection.reply(submitted, Outcome::Data);
    assert_eq!(connection.next_event(), Some(Event::Released { slot: submitted }));
    assert!(connection.is_finished());
}

#[test]
fn shutting_down_serves_what_was_taken_and_refuses_the_rest() {
    let mut connection = connection();
    let mut script = transmission(false);
    script.request(CMD_FLUSH, 0, 0, 0);
    feed(&mut connection, &script.bytes);
    let slot = next_slot(&mut connection);
    send_all(&mut connection);
    connection.shut_down();
    let mut later = Script::default();
    later.request(CMD_WRITE, 0, 0, 600);
    feed(&mut connection, &later.bytes);
    assert_eq!(connection.next_event(), None);
    connection.reply(slot, Outcome::Done);
    let Some(Segment::Bytes { at, length: 32 }) = connection.outgoing(1).next() else {
        panic!("two replies in one piece");
    };
    assert_eq!(connection.reply_bytes(at, 32)[4..8], 108u32.to_be_bytes());
    send_all(&mut connection);
    assert_eq!(connection.next_event(), Some(Event::Released { slot }));
    assert_eq!(connection.next_event(), Some(Event::Close(CloseReason::ShutDown)));
}

#[test]
fn memory_is_what_the_documentation_says() {
    let bytes = connection().memory_bytes();
    assert!((60 << 10..80 << 10).contains(&bytes), "{bytes}");
}
