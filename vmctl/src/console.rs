//! A VM's serial console: raw bytes over a Unix socket, and a log of bounded size.
//!
//! [`hub`] is the worker's end: any number of clients see all output, each may type. [`log`] keeps
//! the output for `vmctl logs`. [`attach`] is the user's end, with the terminal in raw mode.

pub mod attach;
pub mod hub;
pub mod log;
