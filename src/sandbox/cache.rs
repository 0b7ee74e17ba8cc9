//! Remembers the outcomes of programs on inputs, for equal programs and inputs.
//!
//! The key includes limits, profile, isolation and the interpreter. Failures of the judge are never kept.

use super::options::{Options, Program};
use super::outcome::Outcome;
use super::python::PythonInfo;
use sha2::{Digest, Sha256};
use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;

type Key = [u8; 32];

/// A memory of a limited number of outcomes; the oldest is dropped first.
pub(crate) struct Cache {
    capacity: usize,
    setting: Vec<u8>,
    entries: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    outcomes: HashMap<Key, Outcome>,
    order: VecDeque<Key>,
}

impl Cache {
    pub(crate) fn new(options: &Options, python: &PythonInfo) -> Self {
        let setting = format!(
            "{:?} {:?} {} {} {}",
            options.limits,
            options.profile,
            options.isolate_cases,
            python.executable.display(),
            python.version
        );
        Self {
            capacity: options.cache_entries,
            setting: setting.into_bytes(),
            entries: Mutex::default(),
        }
    }

    pub(crate) fn key(&self, program: &Program) -> Key {
        let mut hash = Sha256::new();
        let parts = [&self.setting[..], program.code.as_bytes()];
        for part in parts.into_iter().chain(program.inputs.iter().map(String::as_bytes)) {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.finalize().into()
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Outcome> {
        self.lock().outcomes.get(key).cloned()
    }

    pub(crate) fn put(&self, key: Key, outcome: &Outcome) {
        if outcome.is_infra() {
            return;
        }
        let mut entries = self.lock();
        if entries.outcomes.insert(key, outcome.clone()).is_none() {
            entries.order.push_back(key);
            if entries.order.len() > self.capacity
                && let Some(oldest) = entries.order.pop_front()
            {
                entries.outcomes.remove(&oldest);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
