//! What the daemons do to their own process before they hold anything (feature `daemon`).
//!
//! | module | what it knows |
//! |---|---|
//! | [`foreign`] | whether somebody else's code runs in this process |

pub mod foreign;
