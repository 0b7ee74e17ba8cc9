//! Judges two programs on the tests of a problem: `cargo run --release --example judge`.

use anyhow::Result;
use codeseq::sandbox::{Case, Judge, Options, launcher, verdicts};
use std::io::Write;

fn main() -> Result<()> {
    // The judge starts this program again to prepare the sandbox.
    if launcher::run_if_asked() {
        return Ok(());
    }
    let judge = Judge::start(Options::default())?;
    let tests: Vec<Case> = [("3", "9"), ("12", "144")]
        .map(|(input, output)| Case { input: input.to_owned(), output: output.to_owned() })
        .to_vec();
    let square = "print(int(input()) ** 2)".to_owned();
    let endless = "while True: pass".to_owned();
    for verdict in verdicts(&judge, &[(Some(square), &tests), (Some(endless), &tests)]) {
        writeln!(std::io::stdout(), "{:?} in {:.1} ms of CPU time", verdict.kind, verdict.cpu_ms)?;
    }
    Ok(())
}
