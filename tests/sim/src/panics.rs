//! Panics, caught and quoted.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static LAST: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Keeps panics from printing; [`catch`] quotes them.
pub fn silence() {
    std::panic::set_hook(Box::new(|info| {
        LAST.with(|last| *last.borrow_mut() = info.to_string().replace('\n', " "));
    }));
}

/// Runs `act`; its panic is the error.
pub fn catch<T>(act: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(act)).map_err(|_| LAST.with(|last| last.borrow().clone()))
}
