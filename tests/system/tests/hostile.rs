//! Broken and hostile clients lose their connection and nothing else.
//!
//! In every test a bystander works on, checking its data, while the others misbehave; at the end
//! the daemon still runs, in about the memory it had.
#![forbid(unsafe_code)]

use std::io::{ErrorKind, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use system::{Bystander, Command, Numbers, Raw, World, option_head, pattern};

const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const LENGTH_MAX: u32 = 32 << 20;

/// What a hundred hostile connections may cost in memory that is not of the arena.
const GROWTH_MAX_BYTES: u64 = 192 << 20;

/// Runs `attack` beside a bystander, in a world of its own.
#[track_caller]
fn withstand(attack: impl FnOnce(&World, &Bystander)) {
    let mut world = World::serving();
    let bystander = Bystander::start(&world.socket());
    bystander.expect_progress();
    let before = world.daemon().anonymous_memory_bytes();
    attack(&world, &bystander);
    bystander.finish();
    let after = world.daemon().anonymous_memory_bytes();
    assert!(after < before + GROWTH_MAX_BYTES, "memory grew from {before} to {after} bytes");
    let mut newcomer = world.connect().go();
    newcomer.write(Bystander::AREA, b"still here");
    assert_eq!(newcomer.read(Bystander::AREA, 10), b"still here");
    drop(newcomer);
    world.stop();
    world.check_offline().expect_success();
}

/// Sends as much as the other side takes; how much, and whether it closed, is its own affair.
fn pour(connection: &mut Raw, bytes: &[u8]) {
    let limit = Some(Duration::from_millis(500));
    connection.stream.set_write_timeout(limit).expect("an open socket");
    if let Err(error) = connection.stream.write_all(bytes) {
        let expected = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset, ErrorKind::WouldBlock];
        assert!(expected.contains(&error.kind()), "{error}");
    }
}

#[test]
fn garbage_instead_of_a_handshake() {
    withstand(|world, _| {
        for seed in 0..50 {
            let mut connection = world.connect();
            // Unknown client flags, or a wrong magic in what follows known ones.
            let mut bytes = pattern(seed, 4096);
            if seed % 2 == 0 {
                bytes[..4].copy_from_slice(&3_u32.to_be_bytes());
            }
            pour(&mut connection, &bytes);
            connection.expect_close();
        }
    });
}

#[test]
fn huge_options() {
    withstand(|world, _| {
        for option in [1, 3, 6, 7, 8, 10, 99] {
            for length in [u32::MAX, 1 << 30, 1 << 20] {
                let mut connection = world.connect();
                connection.greet().expect("the daemon greets");
                connection.send_option_head(option, length).expect("a fresh connection");
                pour(&mut connection, &vec![0; 256 << 10]);
                // It is closed at once, or skipped as far as we go on: then our end ends it.
                let _ = connection.stream.shutdown(Shutdown::Write);
                connection.expect_close();
            }
        }
    });
}

#[test]
fn inner_lengths_that_lie() {
    withstand(|world, _| {
        // A name longer than the option; more queries than there is room for.
        let lies: [(u32, &[u8]); 4] = [
            (7, &[0xff, 0xff, 0xff, 0xff, 0, 0]),
            (6, &[0, 0, 0, 0, 0xff, 0xff]),
            (10, &[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]),
            (7, &[0]),
        ];
        for (option, data) in lies {
            let mut connection = world.connect();
            connection.greet().expect("the daemon greets");
            let length = u32::try_from(data.len()).expect("short lies");
            connection.send_option_head(option, length).expect("a fresh connection");
            connection.stream.write_all(data).expect("a fresh connection");
            // An error reply has the highest bit set; closing is an answer as well.
            if let Ok((kind, _)) = connection.read_option_reply() {
                assert!(kind >> 31 == 1, "{option} was answered with {kind:#x}");
            }
        }
    });
}

#[test]
fn a_flood_of_options() {
    withstand(|world, bystander| {
        let list: Vec<u8> = {
            let one = option_head(3, 0);
            one.iter().copied().cycle().take(one.len() * 200_000).collect()
        };
        let mut connections: Vec<Raw> = (0..8).map(|_| world.connect()).collect();
        for connection in &mut connections {
            connection.greet().expect("the daemon greets");
            // Replies are never read.
            pour(connection, &list);
        }
        bystander.expect_progress();
    });
}

#[test]
fn garbage_instead_of_requests() {
    withstand(|world, _| {
        for seed in 0..50 {
            let mut connection = world.connect().go();
            pour(&mut connection, &pattern(seed, 4096));
            connection.expect_close();
        }
    });
}

#[test]
fn writes_longer_than_allowed() {
    withstand(|world, bystander| {
        for length in [LENGTH_MAX + 1, 1 << 30, u32::MAX] {
            let mut connection = world.connect().go();
            let offset = Bystander::AREA;
            connection.send(Command::Write, 1, offset, length).expect("a fresh connection");
            pour(&mut connection, &vec![0xee; 1 << 20]);
            let _ = connection.stream.shutdown(Shutdown::Write);
            connection.expect_close();
            bystander.expect_progress();
        }
        let untouched = world.connect().go().read(Bystander::AREA, 1 << 20);
        assert!(untouched.iter().all(|byte| *byte == 0), "nothing of it was written");
    });
}

#[test]
fn ranges_outside_of_the_export() {
    withstand(|world, _| {
        let size = world.export_size();
        let mut connection = world.connect().go();
        let ranges = [(size, 1), (size - 1, 2), (u64::MAX, 1), (u64::MAX - 4095, 4096)];
        for (cookie, (offset, length)) in (100..).zip(ranges) {
            connection.send(Command::Read, cookie, offset, length).expect("it stays open");
            let reply = connection.read_reply().expect("it stays open");
            assert_eq!((reply.error, reply.cookie), (EINVAL, cookie));
            connection.send(Command::Write, cookie, offset, length).expect("it stays open");
            connection.stream.write_all(&vec![1; length as usize]).expect("it stays open");
            let reply = connection.read_reply().expect("it stays open");
            assert!([EINVAL, ENOSPC].contains(&reply.error) && reply.cookie == cookie, "{reply:?}");
        }
        connection.write(size - 1, b"x");
        assert_eq!(connection.read(size - 1, 1), b"x");
    });
}

#[test]
fn disconnects_in_mid_write() {
    withstand(|world, _| {
        const LENGTH: u32 = 1 << 20;
        let offset = 2 * Bystander::AREA;
        let old = pattern(1, LENGTH as usize);
        let new = pattern(2, LENGTH as usize);
        world.connect().go().write(offset, &old);
        let mut numbers = Numbers(7);
        for _ in 0..100 {
            let mut connection = world.connect().go();
            let sent = usize::try_from(numbers.below(LENGTH.into())).expect("below 1 MiB");
            connection.send(Command::Write, 1, offset, LENGTH).expect("a fresh connection");
            connection.stream.write_all(&new[..sent]).expect("a fresh connection");
        }
        let found = world.connect().go().read(offset, LENGTH);
        let blocks = found.chunks(system::BLOCK_SIZE).zip(old.chunks(system::BLOCK_SIZE));
        for ((found, old), new) in blocks.zip(new.chunks(system::BLOCK_SIZE)) {
            assert!(found == old || found == new, "a block changes whole or not at all");
        }
    });
}

#[test]
fn replies_that_are_never_read() {
    withstand(|world, bystander| {
        let mut connections: Vec<Raw> = (0..16).map(|_| world.connect().go()).collect();
        for connection in &mut connections {
            let limit = Some(Duration::from_millis(100));
            connection.stream.set_write_timeout(limit).expect("an open socket");
            for cookie in 0..1000 {
                if connection.send(Command::Read, cookie, 0, 1 << 20).is_err() {
                    break;
                }
            }
        }
        bystander.expect_progress();
        let mut newcomer = world.connect().go();
        newcomer.write(Bystander::AREA, b"served meanwhile");
    });
}

#[test]
fn half_received_writes_starve_nobody() {
    withstand(|world, bystander| {
        let mut connections: Vec<Raw> = (0..64).map(|_| world.connect().go()).collect();
        for connection in &mut connections {
            let offset = 2 * Bystander::AREA;
            connection.send(Command::Write, 1, offset, LENGTH_MAX).expect("a fresh connection");
            pour(connection, &[0xee; 1000]);
        }
        bystander.expect_progress();
        // One of them goes on after all, as slow as it was: it is served in the end. The others
        // give up, so that there is room for it.
        let mut patient = connections.swap_remove(0);
        drop(connections);
        let limit = Some(Duration::from_secs(20));
        patient.stream.set_write_timeout(limit).expect("an open socket");
        let rest = vec![0xee; LENGTH_MAX as usize - 1000];
        patient.stream.write_all(&rest).expect("the daemon takes the rest");
        assert_eq!(patient.read_reply().expect("it is served").error, 0);
    });
}

#[test]
fn half_open_connections_by_the_hundred() {
    withstand(|world, bystander| {
        let silent: Vec<Raw> = (0..100).map(|_| world.connect()).collect();
        let mut greeted: Vec<Raw> = (0..100).map(|_| world.connect()).collect();
        for connection in &mut greeted {
            // Refused connections are closed before or after the greeting.
            let _ = connection.greet();
        }
        bystander.expect_progress();
        drop((silent, greeted));
        bystander.expect_progress();
        for _ in 0..300 {
            drop(world.connect());
        }
    });
}

#[test]
fn handshakes_that_go_on_for_ever() {
    const TIME: Duration = Duration::from_secs(10);
    withstand(|world, bystander| {
        let start = Instant::now();
        let mut silent: Vec<Raw> = (0..50).map(|_| world.connect()).collect();
        let mut chatty = world.connect();
        chatty.greet().expect("the daemon greets");
        let mut idle = world.connect().go();
        while start.elapsed() < TIME - Duration::from_secs(2) {
            // LIST, again and again: as long as no export is chosen, that is no progress.
            chatty.send_option_head(3, 0).expect("there is time left");
            while chatty.read_option_reply().expect("there is time left").0 != 1 {}
            std::thread::sleep(Duration::from_millis(200));
        }
        for connection in &mut silent {
            connection.expect_close();
        }
        chatty.expect_close();
        let time = start.elapsed();
        assert!(time > TIME - Duration::from_secs(1), "closed after {time:?}");
        bystander.expect_progress();
        idle.write(Bystander::AREA, b"who has chosen may be idle");
    });
}

#[test]
fn hundreds_of_idle_clients_cost_nothing() {
    const CLIENTS: u64 = 500;
    /// Of one CPU, in a hundredth of a second.
    const TICKS_MAX: u64 = 5;
    let mut world = World::serving();
    let before = world.daemon().anonymous_memory_bytes();
    let mut clients: Vec<Raw> = (0..CLIENTS).map(|_| world.connect().go()).collect();
    for (client, number) in clients.iter_mut().zip(0..) {
        client.write(number * 4096, &pattern(number, 4096));
    }
    let each = (world.daemon().anonymous_memory_bytes() - before) / CLIENTS;
    assert!(each < 256 << 10, "a client has {each} bytes");
    // Settling and writing down what was written is not what is measured.
    std::thread::sleep(Duration::from_secs(3));
    let ticks = world.daemon().cpu_ticks();
    std::thread::sleep(Duration::from_secs(5));
    let spent = world.daemon().cpu_ticks() - ticks;
    assert!(spent <= TICKS_MAX, "{CLIENTS} idle clients cost {spent} ticks in 5 s");
    for (client, number) in clients.iter_mut().zip(0..) {
        assert_eq!(client.read(number * 4096, 4096), pattern(number, 4096));
    }
    drop(clients);
    world.stop();
}

#[test]
fn more_clients_than_files_may_be_open_for_wait_their_turn() {
    let mut world = World::serving();
    world.stop();
    let daemon = world.daemon_command(world.slices());
    let mut limited = std::process::Command::new("prlimit");
    limited.arg("--nofile=160:160").arg(daemon.get_program()).args(daemon.get_args());
    world.start_command(&mut limited);
    world.daemon().wait_until_ready();
    // 128 files are the daemon's own.
    let served: Vec<Raw> = (0..32).map(|_| world.connect().go()).collect();
    let mut waiting = world.connect();
    waiting.stream.set_read_timeout(Some(Duration::from_secs(1))).expect("an open socket");
    let error = waiting.greet().expect_err("there is no room");
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    waiting.stream.set_read_timeout(Some(Duration::from_secs(20))).expect("an open socket");
    drop(served);
    waiting.go().write(0, b"its turn");
    world.stop();
}
