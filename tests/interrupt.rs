//! The first signal asks to stop; it does not stop the process.

use codeseq::base::error::exit_code;
use codeseq::base::interrupt;
use codeseq::problems::families;
use codeseq::problems::split::{Wanted, split};
use nix::sys::signal::{Signal, raise};

#[test]
fn the_first_signal_only_asks() {
    interrupt::install().unwrap();
    assert!(!interrupt::requested());
    raise(Signal::SIGTERM).unwrap();
    assert!(interrupt::requested());
    // One that comes at once is the same request: this process lives on.
    raise(Signal::SIGINT).unwrap();
    // Loops notice.
    let wanted = Wanted { sft: 1, rl: 0, test: 0, unseen: 0 };
    let error = split(&families::all(), wanted, 1).err().unwrap();
    assert_eq!(exit_code(&error), 130);
}
