//! The driver, from a worker's side, with guests of a few instructions.
//!
//! Needs `/dev/microvisor`: `cargo xtask test` builds this statically and runs it in VM 0 with
//! `--test-threads=1`, and skips `vm0::` everywhere else.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "all of it is test; clippy only sees that of functions marked so"
)]

mod vm0;
