//! What a process asks for itself at start, and the clocks.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::time::{ClockId, clock_gettime};

/// From `linux/prctl.h`; the libc crate does not have it for this platform.
const PR_SET_IO_FLUSHER: libc::c_int = 57;

/// Tells the kernel that this thread, and those made by it later, write out others' memory, so that
/// their own requests for memory must not wait for such writing. False when not permitted (it needs
/// CAP_SYS_RESOURCE).
pub fn set_io_flusher() -> bool {
    // SAFETY: this call takes plain numbers and touches no memory of ours.
    unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) == 0 }
}

/// Raises the number of files that may be open as far as permitted; gives the limit in force.
pub fn raise_open_files() -> u64 {
    raise(Resource::RLIMIT_NOFILE)
}

/// Raises the limit on locked memory as far as permitted; gives the limit in force in bytes
/// (`u64::MAX`: none). Registering an arena and [`crate::arena::Arena::lock`] count towards it.
pub fn raise_locked_memory() -> u64 {
    raise(Resource::RLIMIT_MEMLOCK)
}

fn raise(resource: Resource) -> u64 {
    let Ok((soft, hard)) = getrlimit(resource) else { return 0 };
    // No limit on open files is refused by the kernel, so its own ceiling is left alone there.
    let beyond = nix::sys::resource::RLIM_INFINITY;
    if resource == Resource::RLIMIT_MEMLOCK && setrlimit(resource, beyond, beyond).is_ok() {
        return beyond;
    }
    if setrlimit(resource, hard, hard).is_ok() { hard } else { soft }
}

/// Nanoseconds on the monotonic clock, the same for all processes since the system started.
pub fn now_ns() -> u64 {
    nanoseconds(ClockId::CLOCK_MONOTONIC)
}

/// Nanoseconds since 1970-01-01 UTC, as far as the system knows; may jump.
pub fn wall_clock_ns() -> u64 {
    nanoseconds(ClockId::CLOCK_REALTIME)
}

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock).expect("every Linux has this clock");
    let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
    seconds * 1_000_000_000 + time.tv_nsec() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime};

    const PR_GET_IO_FLUSHER: libc::c_int = 58;

    #[test]
    fn limits_are_what_is_reported() {
        let reported = raise_open_files();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap().0, reported);
        let reported = raise_locked_memory();
        assert_eq!(getrlimit(Resource::RLIMIT_MEMLOCK).unwrap().0, reported);
    }

    #[test]
    fn io_flusher_is_as_reported() {
        std::thread::spawn(|| {
            let set = set_io_flusher();
            // SAFETY: this call takes plain numbers and touches no memory of ours.
            let now = unsafe { libc::prctl(PR_GET_IO_FLUSHER, 0, 0, 0, 0) };
            // Without the capability even asking is refused.
            assert_eq!(set, now == 1);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn clocks_agree_with_the_standard_library() {
        let before = now_ns();
        std::thread::sleep(Duration::from_millis(5));
        assert!(now_ns() - before >= 5_000_000);
        let known = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        assert!(wall_clock_ns().abs_diff(known.as_nanos() as u64) < 1_000_000_000);
    }
}
