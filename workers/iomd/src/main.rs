//! The daemon: wiring only.
//!
//! `settings` reads what is asked for, `service` starts and stops it, `slices`, `region` and `demo`
//! bring what it needs, `status` answers the control socket. The main thread waits for a signal.
#![forbid(unsafe_code)]

mod demo;
mod failure;
mod region;
mod service;
mod settings;
mod slices;
mod status;

use failure::{Failure, STATUS_FAILED};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use service::Service;
use settings::Settings;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::process::ExitCode;
use sys::signal::{Request, Signals};
use tracing_subscriber::EnvFilter;

/// Environment variable that chooses what is logged, as `info` or `runtime=debug,info`.
const LOG_VARIABLE: &str = "IOMD_LOG";

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_env(LOG_VARIABLE).unwrap_or_else(|_| EnvFilter::new("info"));
    let terminal = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(terminal);
    log.with_writer(std::io::stderr).init();
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            tracing::error!("the array had stopped because a slice failed: see above");
            ExitCode::from(STATUS_FAILED)
        }
        Err(failure) => {
            eprintln!("iomd: {failure}");
            ExitCode::from(failure.status)
        }
    }
}

/// Serves until a signal asks to stop. False when the array had failed.
fn run() -> Result<bool, Failure> {
    let settings = Settings::read()?;
    // Before the first thread: all of them inherit what is blocked.
    let signals = Signals::block().map_err(|error| Failure::failed(format!("signals: {error}")))?;
    let service = Service::start(&settings)?;
    service.announce();
    wait_for_stop(&signals)?;
    tracing::info!("stopping: finishing requests, settling, writing down");
    let clean = service.stop()?;
    tracing::info!(clean, "stopped");
    Ok(clean)
}

/// Sleeps until SIGTERM or SIGINT. Later ones are left unread: they change nothing.
fn wait_for_stop(signals: &Signals) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::failed(format!("signals: {error}"));
    loop {
        match signals.next().map_err(failed)? {
            Some(Request::Stop) => return Ok(()),
            Some(Request::Reload) => tracing::info!("nothing of the configuration can be reloaded"),
            None => {
                let mut watched = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
                match poll(&mut watched, PollTimeout::NONE) {
                    Ok(_) | Err(nix::Error::EINTR) => {}
                    Err(errno) => return Err(failed(errno.into())),
                }
            }
        }
    }
}
