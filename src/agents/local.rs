//! A model of this machine that answers messages: our engine behind the model's chat template.
//!
//! Contract: an answer depends on the call and the settings, not on what is asked beside it.

use super::answer::{Answer, Finish, Outcome, Refusal, RefusalKind, TokenCounts};
use super::endpoint::Sampling;
use super::{Account, Agent, Call};
use crate::base::error::usage;
use crate::base::progress::Progress;
use crate::engine::text::text_of;
use crate::engine::{
    EngineConfig, FinishReason, Next, Observer, OpenModel, Request, RequestId, Rollout,
    SamplingParams,
};
use crate::tasks::opens_thought;
use crate::tokenizer::Tokenizer;
use anyhow::{Error, Result};
use serde_json::{Map, json};

/// A model of this machine.
pub struct Local {
    model: OpenModel,
    name: String,
    sampling: Sampling,
    sizes: LocalSizes,
    stop_ids: Vec<u32>,
    num_cut: u64,
}

/// How much a model of this machine does at the same time.
#[derive(Debug, Clone, Copy)]
pub struct LocalSizes {
    /// Calls answered at the same time.
    pub max_sequences: usize,
    /// The longest prompt, in tokens; the model's positions leave room for an answer in any case.
    pub max_prompt_tokens: usize,
}

impl Local {
    /// Lets an open model answer. `name` is what accounts call it; `stop_ids` end an answer, beside the model's own.
    pub fn new(
        mut model: OpenModel,
        name: String,
        sampling: Sampling,
        sizes: LocalSizes,
        stop_ids: &[u32],
    ) -> Result<Self> {
        let LocalSizes { max_sequences, max_prompt_tokens } = sizes;
        if max_prompt_tokens == 0 || sampling.max_tokens == 0 || max_sequences == 0 {
            return Err(usage(
                "the longest prompt, the longest answer and the number of answers at the same time must be at \
                 least 1",
            ));
        }
        model.tokenizer.check_ids("stop id", stop_ids)?;
        model.generator().warn_of_run_on(stop_ids);
        let stop_ids = [&model.stop_ids(), stop_ids].concat();
        let mut local = Self { model, name, sampling, sizes, stop_ids, num_cut: 0 };
        local.engine_config()?;
        Ok(local)
    }

    fn engine_config(&mut self) -> Result<EngineConfig> {
        let positions = self.model.decoder.config().max_position_embeddings;
        let longest = self.sizes.max_prompt_tokens.saturating_add(self.max_new_tokens());
        let config = EngineConfig::roomy(self.sizes.max_sequences, longest.min(positions));
        self.model.generator().fit(config)
    }

    fn max_new_tokens(&self) -> usize {
        usize::try_from(self.sampling.max_tokens).unwrap_or(usize::MAX)
    }

    /// A call as the engine takes it, and whether its prompt opens the thought; an outcome if it is too long.
    fn request(&self, call: &Call) -> Result<Result<(Request, bool), Refusal>> {
        let tokenizer = &self.model.tokenizer;
        tokenizer.unread_keys(&call.messages)?;
        let text = tokenizer.template()?.render(&call.messages, true)?;
        let prompt = tokenizer.encode(&text)?;
        let positions = self.model.decoder.config().max_position_embeddings;
        let most = self.sizes.max_prompt_tokens.min(positions.saturating_sub(1));
        if prompt.len() > most {
            let message = format!("the prompt has {} tokens, more than {most}", prompt.len());
            return Ok(Err(Refusal { kind: RefusalKind::TooLong, message }));
        }
        let sampling = SamplingParams {
            temperature: self.sampling.temperature as f32,
            max_new_tokens: self.max_new_tokens(),
            stop_ids: self.stop_ids.clone(),
            vocab_size: tokenizer.vocab_size(),
            ..SamplingParams::default()
        };
        let request = Request { prompt, sampling, num_samples: 1, key: call.seed };
        Ok(Ok((request, opens_thought(&text))))
    }
}

impl Agent for Local {
    fn ask(
        &mut self,
        calls: &[Call],
        _progress: &Progress,
        on_outcome: &mut (dyn FnMut(usize, Outcome) -> Result<()> + Send),
    ) -> Result<()> {
        let (mut requests, mut asked) = (Vec::new(), Vec::new());
        for (index, call) in calls.iter().enumerate() {
            match self.request(call)? {
                Ok((request, is_thought_opened)) => {
                    asked.push(Asked {
                        index,
                        is_thought_opened,
                        num_tokens: request.prompt.len(),
                    });
                    requests.push(request);
                }
                Err(refusal) => on_outcome(index, Outcome::Refused(refusal))?,
            }
        }
        let config = self.engine_config()?;
        let mut generator = self.model.generator();
        let tokenizer = generator.tokenizer();
        let mut listener = Listener { tokenizer, asked, on_outcome, num_cut: 0, failure: None };
        let generated = generator.generate(&config, &requests, &mut listener);
        let Listener { num_cut, failure, .. } = listener;
        self.num_cut += num_cut;
        match failure {
            Some(failure) => Err(failure),
            None => generated.map(|_| ()),
        }
    }

    fn account(&self) -> Account {
        let Sampling { temperature, max_tokens } = self.sampling;
        let settings = [
            ("model", json!(self.name)),
            ("temperature", json!(temperature)),
            ("max_tokens", json!(max_tokens)),
        ];
        let settings: Map<_, _> =
            settings.map(|(key, value)| (key.to_owned(), value)).into_iter().collect();
        Account { endpoint: None, settings, is_replay: false, num_cut: self.num_cut, cost: None }
    }
}

/// What was asked of the engine.
struct Asked {
    index: usize,
    is_thought_opened: bool,
    num_tokens: usize,
}

/// Hands answers out as they end.
struct Listener<'a> {
    tokenizer: &'a Tokenizer,
    asked: Vec<Asked>,
    on_outcome: &'a mut (dyn FnMut(usize, Outcome) -> Result<()> + Send),
    num_cut: u64,
    failure: Option<Error>,
}

impl Listener<'_> {
    fn hand_out(&mut self, request: usize, rollout: &Rollout) -> Result<()> {
        let Asked { index, is_thought_opened, num_tokens } = self.asked[request];
        let finish = match rollout.finish_reason {
            FinishReason::Length => Finish::Length,
            FinishReason::Stop | FinishReason::Cancelled => Finish::Stop,
        };
        self.num_cut += u64::from(finish == Finish::Length);
        let tokens = TokenCounts {
            prompt: num_tokens as u64,
            cached: 0,
            completion: rollout.tokens.len() as u64,
        };
        let text = text_of(self.tokenizer, &rollout.tokens)?;
        let answer = Answer::of_text(&text, is_thought_opened, finish, Some(tokens));
        (self.on_outcome)(index, Outcome::Answered(answer))
    }
}

impl Observer for Listener<'_> {
    fn token(&mut self, _request: RequestId, _sample: usize, _rollout: &Rollout) -> Next {
        if self.failure.is_none() { Next::Continue } else { Next::Cancel }
    }

    fn finished(&mut self, RequestId(request): RequestId, _sample: usize, rollout: Rollout) {
        if self.failure.is_none() {
            self.failure = self.hand_out(request, &rollout).err();
        }
    }
}
