//! The plan of a run says before the run starts which buffers it needs, how much it computes, and whether
//! it fits.
//!
//! A run of reinforcement has two phases, sampling and updating, which use memory in turn, so the larger
//! one decides. A plan follows from a [`Workload`] and touches no device, so runs on GPUs can be planned
//! anywhere. Its buffers are those that the program will allocate. The data, the executable and what the
//! allocator wastes are not in it.

mod gpu;
mod sampling;
mod settings;
mod workload;

pub use settings::PlanConfig;
pub use workload::{Device, Sampling, Workload};

use crate::base::error::usage;
use crate::base::memory;
use crate::model::gpu_shape::check_shape;
use crate::model::{Decoder, ModelConfig, Recompute};
use crate::nodes::Nodes;
use crate::ranks::Shards;
use crate::trainer::device;
use anyhow::Result;
use serde::Serialize;

/// The plan of a training run.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    #[serde(skip)]
    shape: ModelConfig,
    /// The number of trained parameters.
    pub num_parameters: usize,
    /// The number of ranks that share the work.
    pub ranks: usize,
    /// The device in whose memory the buffers are.
    pub device: Device,
    /// The buffers that exist all the time: of all CPU ranks together, or of one GPU.
    pub buffers: Vec<PlannedBuffer>,
    /// What all ranks of a run on GPUs together hold on the host all the time.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub host: Vec<PlannedBuffer>,
    /// The phases of a step, whose buffers come and go.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub phases: Vec<Phase>,
    /// The bytes of all buffers with each way of recomputing, if activations are planned.
    pub by_recompute: Vec<(Recompute, usize)>,
    /// The number of updates.
    pub total_steps: u64,
    /// One update has at most this many tokens.
    pub max_tokens_per_step: usize,
    /// The number of rollouts in one step.
    pub rollouts_per_step: usize,
    /// The seconds of all updates, if a rate can be assumed (see [`Device`]).
    pub estimated_secs: Option<f64>,
    /// A change that would make the run fit, if it does not.
    pub advice: Option<String>,
    /// For a run on GPUs, cards by their memory, and what would make the run fit on those on which it does
    /// not.
    #[serde(skip)]
    pub cards: Vec<(String, Option<String>)>,
}

/// Cards that have the same memory.
struct Cards {
    /// The memory in GB of 10^9 bytes.
    gigabytes: f64,
    names: &'static str,
}

/// A plan says of these cards whether the run fits on them.
const CARDS: [Cards; 6] = [
    Cards { gigabytes: 24.0, names: "RTX 3090/4090, A10, L4" },
    Cards { gigabytes: 40.0, names: "A100 40GB" },
    Cards { gigabytes: 48.0, names: "RTX A6000, L40S" },
    Cards { gigabytes: 80.0, names: "A100, H100" },
    Cards { gigabytes: 141.0, names: "H200" },
    Cards { gigabytes: 180.0, names: "B200" },
];

impl Cards {
    /// Returns the cards' label, and what would make `workload` fit on them if it does not.
    fn judge(&self, workload: &Workload) -> (String, Option<String>) {
        let Self { gigabytes, names } = self;
        let device = Device::Gpu { memory_bytes: gigabytes * 1e9 };
        let plan = Plan::on_one_card(&Workload { device, ..workload.clone() });
        (format!("{gigabytes:.0} GB ({names})"), plan.advice)
    }
}

/// A buffer and its size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedBuffer {
    /// What the buffer holds.
    pub name: &'static str,
    pub bytes: usize,
}

/// A part of every step, with the buffers that exist only then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Phase {
    /// What is done in it.
    pub name: &'static str,
    pub buffers: Vec<PlannedBuffer>,
    /// The phase can do without this many of its bytes, but is slower then.
    pub elastic_bytes: usize,
}

impl Phase {
    /// Returns the bytes of its buffers.
    pub fn bytes(&self) -> usize {
        bytes_in(&self.buffers)
    }
}

fn bytes_in(buffers: &[PlannedBuffer]) -> usize {
    buffers.iter().map(|buffer| buffer.bytes).sum()
}

impl Plan {
    pub fn new(workload: &Workload) -> Self {
        let cards = match workload.device {
            Device::Cpu => Vec::new(),
            Device::Gpu { .. } => CARDS.map(|card| card.judge(workload)).to_vec(),
        };
        Self { cards, ..Self::on_one_card(workload) }
    }

    /// Plans a run for the memory of its own device alone.
    fn on_one_card(workload: &Workload) -> Self {
        match &workload.sampling {
            None => Self::without_phases(workload),
            Some(sampling) => Self::in_phases(workload, sampling),
        }
    }

    /// Plans a run whose buffers all exist all the time.
    fn without_phases(workload: &Workload) -> Self {
        let decoder = Decoder::new(workload.shape.clone());
        Self {
            buffers: buffers(&decoder, workload),
            by_recompute: [Recompute::None, Recompute::Selective, Recompute::Layer]
                .map(|recompute| Workload { recompute, ..workload.clone() })
                .map(|workload| (workload.recompute, bytes_of(&decoder, &workload)))
                .to_vec(),
            estimated_secs: gpu::estimated_secs(workload),
            advice: advice(&decoder, workload),
            ..Self::of_sizes(&decoder, workload)
        }
    }

    /// Returns a plan without buffers.
    fn of_sizes(decoder: &Decoder, workload: &Workload) -> Self {
        Self {
            shape: workload.shape.clone(),
            num_parameters: decoder.layout().len,
            ranks: workload.ranks,
            device: workload.device,
            buffers: Vec::new(),
            host: gpu::host(decoder, workload),
            phases: Vec::new(),
            by_recompute: Vec::new(),
            total_steps: workload.total_steps,
            max_tokens_per_step: workload.max_tokens_per_step,
            rollouts_per_step: 0,
            estimated_secs: None,
            advice: None,
            cards: Vec::new(),
        }
    }

    /// Returns the most bytes of buffers that exist at the same time.
    pub fn total_bytes(&self) -> usize {
        bytes_in(&self.buffers) + self.peak().map_or(0, Phase::bytes)
    }

    /// Returns the phase that takes most.
    fn peak(&self) -> Option<&Phase> {
        self.phases.iter().max_by_key(|phase| phase.bytes())
    }

    /// Refuses a run that this program cannot make on this machine and the other `nodes`.
    pub fn check_machine(&self, nodes: &Nodes) -> Result<()> {
        match self.device {
            Device::Cpu if nodes.count > 1 => Err(usage(format!(
                "this is one of {} nodes (NNODES or SLURM_NNODES), but only GPUs work over several: set \
                 train.device=\"cuda\", or NNODES=1",
                nodes.count
            ))),
            Device::Cpu => self.check_fits(memory::total().unwrap_or(u64::MAX)),
            Device::Gpu { .. } => {
                device::check_gpus(nodes.share(self.ranks)?, self.ranks)?;
                self.check_shape()
            }
        }
    }

    /// Refuses a model that the GPUs of the run cannot compute.
    pub fn check_shape(&self) -> Result<()> {
        match self.device {
            Device::Cpu => Ok(()),
            Device::Gpu { .. } => check_shape(&self.shape),
        }
    }

    /// Refuses a run that needs more than `memory_bytes`.
    pub(crate) fn check_fits(&self, memory_bytes: u64) -> Result<()> {
        let least = |phase: &Phase| phase.bytes() - phase.elastic_bytes;
        let needed = bytes_in(&self.buffers) + self.phases.iter().map(least).max().unwrap_or(0);
        if needed as u64 <= memory_bytes {
            return Ok(());
        }
        Err(usage(format!(
            "not enough memory: the run needs {:.1} GB and this machine has {:.1} GB; lower \
             train.ranks, {}train.micro_batch_size or train.seq_len, or set train.recompute=\"layer\" \
             (--dry-run lists the buffers)",
            needed as f64 / 1e9,
            memory_bytes as f64 / 1e9,
            if self.phases.is_empty() { "" } else { "rollout.max_new_tokens, " },
        )))
    }

    /// Returns the label and the value of each line of the plan's table.
    pub fn lines(&self) -> Vec<(String, String)> {
        let gigabytes = |bytes: f64| format!("{:>9.3} GB", bytes / 1e9);
        let mut lines = vec![("parameters".to_owned(), self.num_parameters.to_string())];
        let place = match self.device {
            Device::Cpu => format!("memory of {} on the CPU", count(self.ranks, "rank")),
            Device::Gpu { .. } => format!("memory of each of {}", count(self.ranks, "GPU")),
        };
        lines.push((place, String::new()));
        let line = |b: &PlannedBuffer| (format!("  {}", b.name), gigabytes(b.bytes as f64));
        lines.extend(self.buffers.iter().map(line));
        for phase in &self.phases {
            lines.push((format!("  while {}", phase.name), gigabytes(phase.bytes() as f64)));
            let parts = phase.buffers.iter().map(line);
            lines.extend(parts.map(|(name, bytes)| (format!("  {name}"), bytes)));
        }
        let peak = self.peak().map_or(String::new(), |phase| format!(", while {}", phase.name));
        lines.push((format!("  in all{peak}"), gigabytes(self.total_bytes() as f64)));
        if let Device::Gpu { memory_bytes } = self.device {
            lines.push(("  of".to_owned(), gigabytes(memory_bytes)));
        }
        lines.extend(self.by_recompute.iter().map(|(recompute, bytes)| {
            let mode = format!("{recompute:?}").to_lowercase();
            (format!("  in all with recompute = {mode}"), gigabytes(*bytes as f64))
        }));
        lines.extend(self.cards.iter().map(|(card, advice)| {
            let fits = advice.as_ref().map_or("fits", String::as_str);
            (format!("  on {card}"), fits.to_owned())
        }));
        if !self.host.is_empty() {
            lines.push(("memory of the host".to_owned(), String::new()));
            lines.extend(self.host.iter().map(line));
        }
        lines.push(("updates".to_owned(), self.total_steps.to_string()));
        let tokens = self.max_tokens_per_step;
        lines.push(("tokens in an update, at most".to_owned(), tokens.to_string()));
        let tokens = tokens as u64 * self.total_steps;
        lines.push(("tokens in all, at most".to_owned(), tokens.to_string()));
        if self.rollouts_per_step > 0 {
            lines.push(("rollouts in a step".to_owned(), self.rollouts_per_step.to_string()));
        }
        if let Some(secs) = self.estimated_secs {
            let assumption = "at 40 % of 989 TFLOP/s a GPU, full rows of one sample";
            lines.push((
                "time, estimated".to_owned(),
                format!(
                    "{:.0} s, {:.2} s an update ({assumption})",
                    secs,
                    secs / self.total_steps as f64
                ),
            ));
        }
        if let Some(advice) = &self.advice {
            lines.push(("does not fit".to_owned(), advice.clone()));
        }
        lines
    }
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Returns the weights and gradients of each rank, and the optimizer state that they share, in f32.
fn state(num_parameters: usize, ranks: usize) -> Vec<PlannedBuffer> {
    vec![
        PlannedBuffer { name: "parameters", bytes: 4 * num_parameters * ranks },
        PlannedBuffer { name: "gradients", bytes: 4 * num_parameters * ranks },
        PlannedBuffer { name: "moments of AdamW, sharded", bytes: 8 * num_parameters },
    ]
}

/// Returns the first of a few changes that makes a run fit on its GPUs, if it does not fit and one does.
fn advice(decoder: &Decoder, workload: &Workload) -> Option<String> {
    let Device::Gpu { memory_bytes } = workload.device else { return None };
    let needs = |workload: &Workload| bytes_of(decoder, workload) as f64;
    if needs(workload) <= memory_bytes {
        return None;
    }
    let ranks = 8.max(2 * workload.ranks);
    let small = Workload { rows_at_once: 1, ..workload.clone() };
    let with = |recompute, ranks| Workload { recompute, ranks, ..small.clone() };
    let layer = with(Recompute::Layer, ranks);
    let row_tokens = (workload.row_tokens / 2).max(1);
    let short = Workload { row_tokens, longest: row_tokens, ..layer.clone() };
    let selective = "train.recompute=\"selective\"";
    let by_layer = "train.recompute=\"layer\"";
    let sharded = format!("train.ranks={ranks}");
    let changes = [
        ("train.micro_batch_size=1 and more gradient_accumulation".to_owned(), small.clone()),
        (by_layer.to_owned(), with(Recompute::Layer, workload.ranks)),
        (format!("{sharded} and {selective}"), with(Recompute::Selective, ranks)),
        (format!("{sharded} and {by_layer}"), layer),
        (format!("{sharded}, {by_layer} and train.seq_len={row_tokens}"), short),
    ];
    let over = (needs(workload) - memory_bytes) / 1e9;
    let fitting = changes.into_iter().find(|(_, workload)| needs(workload) <= memory_bytes);
    let change = fitting.map_or("a GPU with more memory".to_owned(), |(change, _)| change);
    Some(format!("{over:.1} GB too much for a GPU: it would fit with {change}"))
}

fn buffers(decoder: &Decoder, workload: &Workload) -> Vec<PlannedBuffer> {
    match workload.device {
        Device::Cpu => {
            let mut buffers = state(decoder.layout().len, workload.ranks);
            buffers.extend(cpu_work(decoder, workload));
            buffers
        }
        Device::Gpu { .. } => {
            let mut buffers = gpu::lasting(decoder, workload);
            buffers.extend(gpu::training(decoder, workload));
            buffers
        }
    }
}

fn bytes_of(decoder: &Decoder, workload: &Workload) -> usize {
    bytes_in(&buffers(decoder, workload))
}

/// Returns what the ranks together allocate for their forwards and backwards.
fn cpu_work(decoder: &Decoder, workload: &Workload) -> Vec<PlannedBuffer> {
    let ranks = workload.ranks;
    let threads = (rayon::current_num_threads() / ranks).max(1);
    let memory = decoder.training_memory(workload.batch(), workload.recompute, threads);
    let bucket = decoder.layout().len.min(Shards::BUCKET) * size_of::<f32>();
    [
        ("packed matrices", memory.packed_weights),
        ("activations", memory.activations),
        ("gradients of activations", memory.backward),
        ("chunk of logits", memory.head),
        ("attention and scratch", memory.scratch),
        ("communication", if ranks > 1 { bucket + bucket / ranks } else { 0 }),
    ]
    .map(|(name, bytes)| PlannedBuffer { name, bytes: bytes * ranks })
    .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trainer::device::{GpuConfig, GradientSums, Moments};

    /// Returns the fine-tuning of Llama 3 8B (paper, Table 6) on GPUs of 80 GB.
    fn llama3_8b() -> Workload {
        let text = r#"{"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096,
            "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8}"#;
        Workload {
            shape: ModelConfig::from_json(text).unwrap(),
            device: Device::Gpu { memory_bytes: 80e9 },
            ranks: 8,
            gpu: GpuConfig::default(),
            recompute: Recompute::Selective,
            row_tokens: 5120,
            rows_at_once: 1,
            longest: 5120,
            total_steps: 1000,
            max_tokens_per_step: 8 * 16 * 5120,
            scores_first: false,
            sampling: None,
        }
    }

    fn gigabytes(plan: &Plan, name: &str) -> f64 {
        plan.buffers.iter().find(|b| b.name.starts_with(name)).unwrap().bytes as f64 / 1e9
    }

    #[test]
    fn a_gpu_holds_of_llama3_8b_what_the_formulas_say() {
        let plan = Plan::new(&llama3_8b());
        for (name, expected) in [
            ("parameters", 16.06),
            ("gradients", 16.06),
            ("master weights", 4.015),
            ("moments", 8.03),
            ("sums of gradients", 4.015),
            ("activations", 15.50),
            ("attention", 0.333),
            ("chunk of logits", 1.610),
        ] {
            let planned = gigabytes(&plan, name);
            assert!((planned - expected).abs() < 0.006 * expected, "{name}: {planned}");
        }
        let gpu = GpuConfig { moments: Moments::Bf16, gradient_sums: GradientSums::Full };
        let small = Plan::new(&Workload { gpu, ..llama3_8b() });
        assert!((gigabytes(&small, "moments") - 4.015).abs() < 0.01);
        assert!((gigabytes(&small, "sums of gradients") - 32.12).abs() < 0.02);
        let inputs = Plan::new(&Workload { recompute: Recompute::Layer, ..llama3_8b() });
        assert!((gigabytes(&inputs, "activations") - 1.825).abs() < 0.005);
    }

    #[test]
    fn what_does_not_fit_comes_with_what_to_change() {
        let advice = |rows_at_once: usize, gigabytes: f64| {
            let device = Device::Gpu { memory_bytes: gigabytes * 1e9 };
            Plan::new(&Workload { rows_at_once, device, ..llama3_8b() }).advice
        };
        assert_eq!(advice(1, 80.0), None);
        assert!(advice(1, 55.0).unwrap().contains("layer"));
        assert!(advice(4, 80.0).unwrap().contains("micro_batch_size=1"));
        assert!(advice(1, 10.0).unwrap().contains("more memory"));
    }

    #[test]
    fn a_plan_says_on_which_cards_it_fits() {
        let plan = Plan::new(&llama3_8b());
        let fits: Vec<bool> = plan.cards.iter().map(|(_, advice)| advice.is_none()).collect();
        assert_eq!(fits, [false, false, false, true, true, true]);
        let line = |start: &str| {
            let found = plan.lines().into_iter().find(|(label, _)| label.starts_with(start));
            found.unwrap().1
        };
        assert!(line("  on 48 GB").contains("train.recompute=\"layer\""), "{}", line("  on 48 GB"));
        assert_eq!(line("  on 141 GB (H200)"), "fits");
        let on_cpu = Plan::new(&Workload { device: Device::Cpu, ..llama3_8b() });
        assert!(on_cpu.cards.is_empty());
    }

    #[test]
    fn a_run_that_needs_more_memory_than_there_is_is_refused() {
        let plan = Plan::new(&Workload { device: Device::Cpu, ..llama3_8b() });
        plan.check_fits(plan.total_bytes() as u64).unwrap();
        let error = plan.check_fits(plan.total_bytes() as u64 - 1).unwrap_err();
        assert_eq!(crate::base::error::exit_code(&error), 2);
        assert!(error.to_string().contains("not enough memory"), "{error}");
    }

    #[test]
    fn the_time_of_llama3_8b_is_that_of_its_flops() {
        // These are 1000 steps of 16 micro-batches of 251.2 TFLOP.
        let expected = 16_000.0 * 251.2e12 / gpu::FLOPS_PER_SEC;
        let secs = Plan::new(&llama3_8b()).estimated_secs.unwrap();
        assert!((secs - expected).abs() < 0.001 * expected, "{secs}");
        let on_cpu = Workload { device: Device::Cpu, ..llama3_8b() };
        assert_eq!(Plan::new(&on_cpu).estimated_secs, None);
    }
}
