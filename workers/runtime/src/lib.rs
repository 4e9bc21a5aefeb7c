//! The worker: a pinned thread with one ring that hosts I/O managers and a frontend.
