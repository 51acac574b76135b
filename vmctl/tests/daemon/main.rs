//! The real `vmctl`, daemon and command line, with workers that only speak the protocol.
//!
//! Each test has a daemon of its own in a temporary directory. It starts this very program as its
//! workers: [`fake_worker`] is what they do.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "all of it is test; clippy only sees that of functions marked so"
)]

mod bad_input;
mod console;
mod daily;
mod disks;
mod fake_worker;
mod lifecycle;
mod logging;
mod machine;
mod messages;
mod nics;
mod restarts;
mod vsock;
