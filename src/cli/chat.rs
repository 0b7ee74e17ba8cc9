//! `train chat`: talks with a model in the terminal.
//!
//! Contract: an answer follows from the conversation, the settings and the seed, as those of `train generate`
//! do. Answers go to stdout, everything else to stderr, so that a script can talk as well. Ctrl-C ends the
//! answer that is growing, which stays in the conversation as far as it came; otherwise it ends the program.

mod conversation;
mod input;

use super::device::DeviceArgs;
use super::model::ModelArgs;
use super::print;
use crate::base::error::usage;
use crate::base::terminal;
use crate::checkpoint::warn_of_run_on;
use crate::engine::text::{Reader, Reading, Stops};
use crate::engine::{
    Engine, EngineConfig, FinishReason, Next, Observer, Request, RequestId, Rollout,
};
use crate::tokenizer::Tokenizer;
use anyhow::{Context, Result};
use conversation::Conversation;
use input::{Command, Input};
use std::sync::atomic::{AtomicU8, Ordering};

/// Arguments of `train chat`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Start with this setting, as in temperature=0.7 (may be given several times); /settings shows all
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
    /// Longest conversation, in tokens [default: what the model was made for]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    max_length: Option<u32>,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Says what Ctrl-C does.
static PHASE: AtomicU8 = AtomicU8::new(READING);
/// It ends the program.
const READING: u8 = 0;
/// It ends the answer.
const ANSWERING: u8 = 1;
/// It has ended the answer.
const STOPPED: u8 = 2;

const HELP: &str = "\
/undo             take back the last question and its answer
/clear            begin a new conversation
/system [TEXT]    show or set what the model is told first; - removes it
/settings         show the settings
/set NAME VALUE   change one
/quit             end (also Ctrl-D)
A line that ends with \\ goes on in the next; \"\"\" begins and ends several lines. Ctrl-C ends an answer.";

/// Talks until the input ends.
pub fn run(args: Args) -> Result<()> {
    args.device.check(1)?;
    let mut model = args.device.open(args.model.place(), 1)?;
    warn_of_run_on(model.decoder.config(), &model.tokenizer, &[]);
    model.tokenizer.template()?;
    let shape = model.decoder.config();
    let max_length = args.max_length.map_or(shape.max_position_embeddings, |n| n as usize);
    shape.check_length(max_length)?;
    let mut conversation = Conversation::new(args.system, model.stop_ids());
    for setting in &args.set {
        let (name, value) = setting.split_once('=').ok_or_else(|| {
            usage(format!("--set {setting:?}: expected NAME=VALUE, as in temperature=0.7"))
        })?;
        conversation.set(name, value).context("--set")?;
    }
    listen_for_interrupts()?;
    let config = EngineConfig::roomy(1, max_length);
    let (engine, tokenizer) = model.engine(config, "lower --max-length")?;
    let mut chat = Chat { engine, tokenizer, max_length, conversation };
    let mut input = Input::new();
    if input.is_terminal() {
        terminal::line(format_args!(
            "{} (/help says what else there is)",
            args.model.place().model.display()
        ));
    }
    while let Some(command) = input.next()? {
        match chat.obey(command) {
            Ok(true) => {}
            Ok(false) => break,
            // A mistake in what was typed ends a script, not a conversation.
            Err(error) if input.is_terminal() && crate::base::error::exit_code(&error) == 2 => {
                terminal::line(format_args!("{error:#}"));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Has Ctrl-C do what [`PHASE`] says.
fn listen_for_interrupts() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("starting a thread for Ctrl-C")?;
    let listen = async {
        while tokio::signal::ctrl_c().await.is_ok() {
            let order = Ordering::Relaxed;
            if PHASE.compare_exchange(ANSWERING, STOPPED, order, order).is_err() {
                std::process::exit(130);
            }
        }
    };
    std::thread::Builder::new()
        .name("interrupts".to_owned())
        .spawn(move || runtime.block_on(listen))
        .context("starting a thread for Ctrl-C")?;
    Ok(())
}

/// A model in a conversation.
struct Chat<'m> {
    engine: Engine<'m>,
    tokenizer: &'m Tokenizer,
    max_length: usize,
    conversation: Conversation,
}

impl Chat<'_> {
    /// Does what was typed; false at the end.
    fn obey(&mut self, command: Command) -> Result<bool> {
        let conversation = &mut self.conversation;
        match command {
            Command::Say(text) => self.answer(text)?,
            Command::Help => terminal::line(HELP),
            Command::Undo => match conversation.undo() {
                Some(question) => terminal::line(format_args!("taken back: {question}")),
                None => return Err(usage("there is nothing to take back")),
            },
            Command::Clear => conversation.clear(),
            Command::System(None) => terminal::line(conversation.system().unwrap_or("(none)")),
            Command::System(Some(text)) => conversation.set_system(&text),
            Command::Settings => terminal::line(conversation.settings()),
            Command::Set(name, value) => conversation.set(&name, &value)?,
            Command::Quit => return Ok(false),
        }
        Ok(true)
    }

    /// Answers a question, and remembers both.
    fn answer(&mut self, question: String) -> Result<()> {
        let messages = self.conversation.with_question(&question);
        let prompt = self.tokenizer.encode_prompt(&messages)?;
        let room = self.max_length.saturating_sub(prompt.len());
        if room == 0 {
            return Err(usage(format!(
                "the conversation has {} tokens, and there is room for {}: /undo or /clear",
                prompt.len(),
                self.max_length
            )));
        }
        let (sampling, seed) = self.conversation.sampling(room, self.tokenizer.vocab_size());
        let key = Request::key_of(seed, &prompt);
        let request = Request { prompt, sampling, num_samples: 1, key };
        let (mut answer, mut is_cut_off) = (String::new(), false);
        let printer = Printer { answer: &mut answer, is_cut_off: &mut is_cut_off };
        let reading = Reading::new(self.tokenizer, Stops::default(), true, printer);
        let mut reading = Interruptible(reading);
        PHASE.store(ANSWERING, Ordering::Relaxed);
        let done = self.engine.generate(&[request], &mut reading);
        PHASE.store(READING, Ordering::Relaxed);
        done?;
        reading.0.into_result()?;
        if is_cut_off {
            terminal::line("(cut off at max_new_tokens, or at the end of the context)");
        }
        self.conversation.remember(question, answer);
        Ok(())
    }
}

/// Prints an answer as it comes, and keeps it.
struct Printer<'a> {
    answer: &'a mut String,
    is_cut_off: &'a mut bool,
}

impl Reader for Printer<'_> {
    fn text(&mut self, _request: RequestId, _sample: usize, new: &str) -> Result<()> {
        self.answer.push_str(new);
        if new.is_empty() { Ok(()) } else { print(new) }
    }

    fn finished(&mut self, _: RequestId, _: usize, _: String, rollout: Rollout) -> Result<()> {
        *self.is_cut_off = rollout.finish_reason == FinishReason::Length;
        print("\n")
    }
}

/// Ends an answer at Ctrl-C.
struct Interruptible<O>(O);

impl<O: Observer> Observer for Interruptible<O> {
    fn token(&mut self, request: RequestId, sample: usize, rollout: &Rollout) -> Next {
        let next = self.0.token(request, sample, rollout);
        if PHASE.load(Ordering::Relaxed) == STOPPED { Next::Stop } else { next }
    }

    fn finished(&mut self, request: RequestId, sample: usize, rollout: Rollout) {
        self.0.finished(request, sample, rollout);
    }
}
