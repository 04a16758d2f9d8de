//! DPDK's functions, and those of `shim.c`, as bindgen reads their headers.
#![allow(unsafe_code, missing_docs, non_camel_case_types, non_upper_case_globals, unreachable_pub, unused)]
#![allow(clippy::all, clippy::undocumented_unsafe_blocks)]

include!(concat!(env!("OUT_DIR"), "/dpdk.rs"));
