//! What the daemons do to their own process before they hold anything (feature `daemon`), in this order:
//!
//! | module | what it knows |
//! |---|---|
//! | [`foreign`] | whether somebody else's code runs in this process |
//! | [`user`] | how root gives up what it can do |
//! | [`sandbox`] | what is left to the process: calls, files, ports |

pub mod foreign;
pub mod sandbox;
pub mod user;
