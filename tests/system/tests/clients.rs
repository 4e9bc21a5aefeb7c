//! What people have installed works: libnbd's tools, QEMU's tools, fio, a filesystem.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::net::TcpListener;
use std::path::Path;

use serde_json::Value;
use system::{PYTHON, World, run, write_image};

const MIB: u64 = 1 << 20;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

/// Whether two files hold the same bytes up to the end of the first, and zeros after it.
fn is_image_of(image: &Path, whole: &Path) -> bool {
    let mut image = File::open(image).expect("it exists");
    let mut whole = File::open(whole).expect("it exists");
    let size = image.seek(SeekFrom::End(0)).expect("a plain file");
    image.rewind().expect("a plain file");
    let (mut left, mut right) = (vec![0; MIB as usize], vec![0; MIB as usize]);
    for at in (0..size).step_by(MIB as usize) {
        let length = (size - at).min(MIB) as usize;
        image.read_exact(&mut left[..length]).expect("within its size");
        if whole.read_exact(&mut right[..length]).is_err() || left[..length] != right[..length] {
            return false;
        }
    }
    let mut rest = Vec::new();
    whole.read_to_end(&mut rest).expect("a plain file");
    rest.iter().all(|byte| *byte == 0)
}

#[test]
fn nbdinfo_sees_every_capability() {
    let world = World::serving();
    let info = json(&run("nbdinfo", &["--json", &world.uri()]).expect_success().stdout);
    let export = &info["exports"][0];
    for capability in
        ["cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero"].iter()
    {
        assert_eq!(export[format!("can_{capability}")], true, "{capability} in {info}");
    }
    assert_eq!(info["structured"], true);
    assert_eq!(export["is_read_only"], false);
    assert_eq!(export["contexts"], json("[\"base:allocation\"]"));
    assert_eq!(export["block_size_minimum"], 1);
    assert_eq!(export["block_size_preferred"], 4096);
    assert_eq!(export["block_size_maximum"], 32 * MIB);
    // Four of five slices of 256 MiB carry data; what is not theirs is metadata.
    let size = export["export-size"].as_u64().expect("a number");
    assert!((512 * MIB..1024 * MIB).contains(&size), "{size}");
    assert_eq!(size % 4096, 0);
}

#[test]
fn the_array_is_exported_under_the_empty_name_and_its_own() {
    let world = World::serving();
    let size = world.export_size();
    let named = run("nbdinfo", &["--size", &world.uri_of("test")]).expect_success();
    assert_eq!(named.stdout.trim(), size.to_string());
    let list = run("nbdinfo", &["--list", "--json", &world.uri()]).expect_success();
    assert!(list.stdout.contains("\"export-name\": \"test\""), "{list}");
    run("nbdinfo", &["--size", &world.uri_of("other")]).expect_refusal();
}

/// Extents of the map that say that they hold data, as (offset, length).
fn data_extents(world: &World) -> Vec<(u64, u64)> {
    let map = run("nbdinfo", &["--map", "--json", &world.uri()]).expect_success();
    let map = json(&map.stdout);
    let extents = map.as_array().expect("a list of extents").iter();
    let number = |extent: &Value, key: &str| extent[key].as_u64().expect("a number");
    extents
        .filter(|extent| number(extent, "type") == 0)
        .map(|extent| (number(extent, "offset"), number(extent, "length")))
        .collect()
}

#[test]
fn the_map_shows_what_was_written_and_what_was_given_back() {
    let world = World::serving();
    assert_eq!(data_extents(&world), [], "a fresh array holds nothing");
    let uri = world.uri();
    let write = ["-f", "raw", "-c", "write -P 90 64M 8M", &uri];
    run("qemu-io", &write).expect_success();
    let extents = data_extents(&world);
    let covered: u64 = extents.iter().map(|(_, length)| length).sum();
    // Rows that were written in part are allocated whole: five chunks of slack are plenty.
    assert!(extents[0].0 <= 64 * MIB && (8 * MIB..10 * MIB).contains(&covered), "{extents:?}");
    run("qemu-io", &["-f", "raw", "-d", "unmap", "-c", "discard 0 128M", &uri]).expect_success();
    assert_eq!(data_extents(&world), [], "whole rows are given back");
    run("qemu-io", &["-f", "raw", "-c", "read -P 0 64M 8M", &uri]).expect_success();
}

#[test]
fn nbdcopy_copies_in_and_out_also_across_a_restart() {
    let mut world = World::serving();
    let (image, copy) = (world.path("image"), world.path("copy"));
    write_image(&image, 1, 96 * MIB);
    run("nbdcopy", &["--flush".as_ref(), image.as_os_str(), world.uri().as_ref()]).expect_success();
    run("nbdcopy", &[world.uri().as_ref(), copy.as_os_str()]).expect_success();
    assert!(is_image_of(&image, &copy));
    world.stop();
    world.check_offline().expect_success();
    world.start();
    std::fs::remove_file(&copy).expect("it was just made");
    run("nbdcopy", &[world.uri().as_ref(), copy.as_os_str()]).expect_success();
    assert!(is_image_of(&image, &copy));
}

#[test]
fn qemu_img_converts_and_compares() {
    let world = World::serving();
    let (image, copy) = (world.path("image"), world.path("copy.qcow2"));
    let uri = world.uri();
    write_image(&image, 2, 96 * MIB);
    let image = image.to_str().expect("our paths are plain");
    let copy = copy.to_str().expect("our paths are plain");
    let convert = ["convert", "-n", "-f", "raw", "-O", "raw", image, &uri];
    run("qemu-img", &convert).expect_success();
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", image, &uri]).expect_success();
    let back = ["convert", "-f", "raw", "-O", "qcow2", &uri, copy];
    run("qemu-img", &back).expect_success();
    run("qemu-img", &["compare", "-f", "qcow2", "-F", "raw", copy, &uri]).expect_success();
}

#[test]
fn qemu_io_writes_any_range() {
    let world = World::serving();
    let uri = world.uri();
    let mut words = vec!["-f", "raw", "-d", "unmap"];
    let commands = [
        // Less than a block, across two, across chunks; neighbours stay.
        "write -P 17 1000 3000",
        "write -P 18 3999 2",
        "read -P 0 0 1000",
        "read -P 17 1000 2999",
        "read -P 18 3999 2",
        "read -P 0 4001 100",
        "write -P 19 65000 1500",
        "read -P 19 65000 1500",
        // One large write with FUA, and a hole punched across blocks by bytes.
        "write -f -P 20 1M 16M",
        "write -z 1500000 1000",
        "read -P 20 1499000 1000",
        "read -P 0 1500000 1000",
        "read -P 20 1501000 4000",
        // Zeroes that may and that may not leave a hole.
        "write -z -u 2M 1M",
        "write -z 3M 1M",
        "read -P 0 2M 2M",
        "read -P 20 4M 1M",
        "discard 5M 1M",
        "read -P 20 6M 1M",
        "flush",
    ];
    words.extend(commands.iter().flat_map(|command| ["-c", command]));
    words.push(&uri);
    let finished = run("qemu-io", &words).expect_success();
    assert!(!finished.stdout.contains("failed"), "{finished}");
}

/// Runs a script with libnbd's module; it has `handle(...)` to connect and the URI.
fn python(world: &World, script: &str) {
    const HEAD: &str = "
import nbd, sys
uri = sys.argv[1]
def handle():
    h = nbd.NBD()
    h.add_meta_context('base:allocation')
    h.connect_uri(uri)
    return h
def extents(h, length, offset, flags=0):
    found = []
    def note(context, at, entries, error):
        assert context == 'base:allocation', context
        found.extend(entries)
    h.block_status(length, offset, note, flags)
    return list(zip(found[::2], found[1::2]))
def refused(call, *errors):
    try:
        call()
    except nbd.Error as error:
        assert error.errno in errors, error
        return
    raise AssertionError('not refused')
";
    let script = format!("{HEAD}{script}");
    run(PYTHON, &["-c", &script, &world.uri()]).expect_success();
}

#[test]
fn libnbd_flags_do_what_they_say() {
    let world = World::serving();
    python(
        &world,
        "
h = handle()
assert h.get_protocol() == 'newstyle-fixed' and h.get_structured_replies_negotiated()
h.pwrite(b'a' * 10000, 5000, nbd.CMD_FLAG_FUA)
h.zero(3000, 6000, nbd.CMD_FLAG_FUA)
h.zero(1000, 10000, nbd.CMD_FLAG_NO_HOLE)
h.trim(500, 12000, nbd.CMD_FLAG_FUA)
h.cache(1 << 20, 0)
h.flush()
wanted = b'a' * 1000 + b'\\0' * 3000 + b'a' * 1000 + b'\\0' * 1000 + b'a' * 1000
assert h.pread(7000, 5000) == wanted
assert h.pread(2500, 12500) == b'a' * 2500
chunks = []
def chunk(data, at, status, error):
    chunks.append((at, len(data), status))
h.pread_structured(65536, 0, chunk, nbd.CMD_FLAG_DF)
assert len(chunks) == 1 and chunks[0][:2] == (0, 65536), chunks
# A hole may be zeroed fast or not, but nothing between; the bytes are the same either way.
try:
    h.zero(1 << 20, 64 << 20, nbd.CMD_FLAG_FAST_ZERO)
except nbd.Error as error:
    assert error.errno in ('EOPNOTSUPP', 'ENOTSUP'), error
assert h.pread(4096, 64 << 20) == b'\\0' * 4096
h.shutdown()
",
    );
}

#[test]
fn libnbd_block_status_covers_what_was_asked() {
    let world = World::serving();
    python(
        &world,
        "
h = handle()
size = h.get_size()
h.pwrite(b'x' * 4096, 32 << 20)
found = extents(h, 1 << 20, 32 << 20)
assert found[0][1] == 0 and found[0][0] >= 4096, found
length = min(size, 1 << 30)
assert extents(h, length, 0)[0][1] == 3
assert len(extents(h, length, 0, nbd.CMD_FLAG_REQ_ONE)) == 1
# Reserved space may read as zeros but is no hole.
h.zero(8 << 20, 128 << 20, nbd.CMD_FLAG_NO_HOLE)
for length, flags in extents(h, 8 << 20, 128 << 20):
    assert not flags & nbd.STATE_HOLE, (length, flags)
h.shutdown()
",
    );
}

#[test]
fn requests_outside_of_the_export_are_refused() {
    let world = World::serving();
    python(
        &world,
        "
h = handle()
h.set_strict_mode(0)
size = h.get_size()
refused(lambda: h.pread(4096, size - 100), 'EINVAL')
refused(lambda: h.pwrite(b'x' * 4096, size - 100), 'EINVAL', 'ENOSPC')
refused(lambda: h.zero(4096, size), 'EINVAL', 'ENOSPC')
refused(lambda: h.trim(4096, size - 1), 'EINVAL')
refused(lambda: extents(h, 4096, size - 1), 'EINVAL')
h.pwrite(b'z' * 100, size - 100)
assert h.pread(100, size - 100) == b'z' * 100
h.shutdown()
",
    );
}

#[test]
fn a_flush_covers_every_connection() {
    let world = World::serving();
    python(
        &world,
        "
hands = [handle() for _ in range(16)]
assert all(h.can_multi_conn() for h in hands)
for number, h in enumerate(hands):
    h.pwrite(bytes([number + 1]) * 8192, number * 8192)
hands[0].flush()
for number in range(16):
    for h in hands[::5]:
        assert h.pread(8192, number * 8192) == bytes([number + 1]) * 8192
for h in hands:
    h.shutdown()
",
    );
}

#[test]
fn fio_verifies_what_it_wrote() {
    let world = World::serving();
    let uri = format!("--uri={}", world.uri());
    let common = [
        "--ioengine=nbd",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--direct=1",
        "--randrepeat=1",
        "--group_reporting",
        &uri,
    ];
    let jobs = [
        vec!["--name=small", "--rw=randwrite", "--bs=4k", "--iodepth=32", "--size=48M"],
        vec![
            "--name=odd",
            "--rw=randwrite",
            "--bsrange=512-48k",
            "--bs_unaligned=1",
            "--iodepth=8",
            "--size=32M",
        ],
        vec!["--name=large", "--rw=write", "--bs=1M", "--iodepth=16", "--size=256M"],
        vec![
            "--name=many",
            "--rw=randwrite",
            "--bs=8k",
            "--iodepth=64",
            "--numjobs=4",
            "--size=16M",
            "--offset_increment=64M",
            "--fsync=64",
        ],
    ];
    for job in jobs {
        let words: Vec<&str> = job.iter().chain(&common).copied().collect();
        let mut command = std::process::Command::new("fio");
        // fio leaves state files of its verification where it runs.
        command.args(words).current_dir(world.path("."));
        let finished = system::run_command(&mut command).expect_success();
        assert!(!finished.stdout.contains("verify:"), "{finished}");
    }
}

#[test]
fn a_filesystem_survives_the_journey() {
    let mut world = World::serving();
    let tree = world.path("tree");
    for number in 0..40 {
        let directory = tree.join(format!("directory{}", number % 7));
        std::fs::create_dir_all(&directory).expect("the world is writable");
        let bytes = system::pattern(number, 1000 * (number as usize + 1).pow(2));
        std::fs::write(directory.join(format!("file{number}")), bytes).expect("there is room");
    }
    let (image, copy) = (world.path("image"), world.path("copy"));
    let make = ["-q", "-F", "-d"].map(std::ffi::OsStr::new);
    let paths = [tree.as_os_str(), image.as_os_str(), "200M".as_ref()];
    run("mkfs.ext4", &[make.as_slice(), paths.as_slice()].concat()).expect_success();
    let uri = world.uri();
    run("nbdcopy", &["--flush".as_ref(), image.as_os_str(), uri.as_ref()]).expect_success();
    world.stop();
    world.start();
    run("nbdcopy", &[uri.as_ref(), copy.as_os_str()]).expect_success();
    run("e2fsck", &["-f".as_ref(), "-n".as_ref(), copy.as_os_str()]).expect_success();
    assert!(is_image_of(&image, &copy));
}

#[test]
fn tcp_serves_as_unix_does() {
    let mut world = World::serving();
    world.stop();
    let free = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = free.local_addr().expect("it is bound");
    drop(free);
    let mut command = world.daemon_command(world.slices());
    command.args(["--nbd", &format!("tcp:{address}")]);
    world.start_command(&mut command);
    let ready = world.daemon().wait_until_ready();
    assert!(ready.contains(&format!("nbd://{address}")), "{ready}");
    let image = world.path("image");
    write_image(&image, 3, 16 * MIB);
    let uri = format!("nbd://{address}/test");
    run("nbdcopy", &[image.as_os_str(), uri.as_ref()]).expect_success();
    let image = image.to_str().expect("our paths are plain");
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", image, &world.uri()]).expect_success();
    world.stop();
}

#[test]
fn the_daemon_stops_cleanly_with_clients_connected() {
    let mut world = World::serving();
    let mut idle = world.connect().go();
    idle.write(0, b"something");
    let _half_open = world.connect();
    world.stop();
    idle.expect_close();
    world.start();
    assert_eq!(world.connect().go().read(0, 9), b"something");
}
