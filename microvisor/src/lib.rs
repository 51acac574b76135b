//! The microvisor.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod memory;
