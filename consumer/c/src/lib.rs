//! The borrower's library for C, and for whatever calls C. `overbank.h` is made of what stands here: `tests/header.rs`
//! writes it.
//!
//! | module | what it knows |
//! |---|---|
//! | `status` | the codes that functions return, and the text behind the last one |
//! | `client`, `lease`, `lane`, `share`, `region` | the functions, one noun a file |
//! | `guard` | what surrounds each of them: no panic gets out, every failure leaves a text |
//! | `handles` | handles are numbers that are looked up, never pointers that are followed |
//! | `arguments` | pointers from the other side, checked and turned into what Rust knows |
#![allow(non_camel_case_types, reason = "the names are C's")]

mod arguments;
pub mod client;
mod guard;
mod handles;
pub mod lane;
pub mod lease;
pub mod region;
pub mod share;
pub mod status;

#[cfg(panic = "abort")]
compile_error!("a panic must not end the program that calls: build with unwinding");
