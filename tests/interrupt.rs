//! The first signal asks to stop; it does not stop the process.

use codeseq::base::interrupt;
use nix::sys::signal::{Signal, raise};

#[test]
fn the_first_signal_only_asks() {
    interrupt::install().unwrap();
    assert!(!interrupt::requested());
    raise(Signal::SIGTERM).unwrap();
    assert!(interrupt::requested());
}
