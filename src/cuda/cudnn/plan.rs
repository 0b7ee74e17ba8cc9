//! This file makes a graph executable: it chooses an engine, which compiles a kernel.
//!
//! Contract: the engine is the one that was asked for, or else the first in the library's own
//! ranking that accepts the graph within the workspace that is planned for. A plan can be made for a described device without having one; it
//! can then be inspected, but not run.

use super::backend::{Backend, Descriptor, Handle, HeuristicMode, Kind, Knob, Pointer, attribute};
use super::graph::{Graph, Role};
use crate::cuda::sizes::ATTENTION_WORKSPACE;
use crate::cuda::stream::Stream;
use anyhow::{Context, Result, anyhow};
use std::ffi::c_void;

/// The device that a plan is made for.
pub(crate) enum Target<'a> {
    Device(&'a Handle),
    /// Only the properties of this device are known.
    Described(&'a Descriptor),
}

pub(crate) struct Engine {
    pub(crate) index: i64,
    pub(crate) knobs: &'static [(Knob, i64)],
}

#[derive(Debug)]
pub(crate) struct Plan {
    plan: Descriptor,
    engine: i64,
    workspace_bytes: usize,
    graph: Graph,
    /// The plan was made from these descriptors, which must outlive it.
    _sources: [Descriptor; 2],
}

impl Plan {
    /// Compiles `graph` for `target`, with the engine `asked` for or else the best-ranked one that
    /// accepts it and needs no more workspace than is planned for. On an A100 the best-ranked engine for the
    /// backward of attention needs gigabytes.
    pub(crate) fn new(
        backend: &'static Backend,
        graph: Graph,
        target: &Target<'_>,
        asked: Option<&Engine>,
    ) -> Result<Self> {
        let operations = describe(backend, &graph, target)?;
        let configurations = match asked {
            Some(engine) => vec![configure(backend, &operations, target, engine)?],
            None => rank(backend, &operations, target)?,
        };
        let mut refusal = anyhow!("no engine is offered");
        for configuration in configurations {
            match compile(backend, &configuration, target) {
                Ok(plan) => {
                    let mut workspace_bytes = [0i64];
                    plan.get(attribute::EXECUTION_PLAN_WORKSPACE_SIZE, &mut workspace_bytes)?;
                    let engine = engine_of(backend, &configuration)?;
                    let workspace_bytes = workspace_bytes[0] as usize;
                    if workspace_bytes > ATTENTION_WORKSPACE {
                        refusal = anyhow!(
                            "engine {engine} needs a workspace of {workspace_bytes} bytes; \
                             {ATTENTION_WORKSPACE} are planned for"
                        );
                        continue;
                    }
                    let _sources = [operations, configuration];
                    return Ok(Self { plan, engine, workspace_bytes, graph, _sources });
                }
                Err(e) => refusal = e,
            }
        }
        Err(refusal.context("cuDNN has no engine for this attention"))
    }

    /// Returns the number of the engine.
    pub(crate) fn engine(&self) -> i64 {
        self.engine
    }

    /// Returns how many bytes of workspace the plan needs while it runs.
    pub(crate) fn workspace_bytes(&self) -> usize {
        self.workspace_bytes
    }

    /// Queues the plan on `stream`.
    ///
    /// # Safety
    /// Every tensor of the graph must be bound to memory of its size, and `workspace` must have
    /// [`Plan::workspace_bytes`].
    pub(crate) unsafe fn execute(
        &self,
        backend: &'static Backend,
        handle: &Handle,
        stream: &Stream,
        bindings: &[(Role, u64)],
        workspace: u64,
    ) -> Result<()> {
        let scalars = self.graph.scalars();
        let ids: Vec<i64> = bindings
            .iter()
            .map(|(role, _)| *role as i64)
            .chain(scalars.iter().map(|(id, _)| *id))
            .collect();
        let constants =
            scalars.iter().map(|(_, value)| std::ptr::from_ref(value).cast_mut().cast());
        let addresses = bindings.iter().map(|(_, address)| *address as *mut c_void);
        let pointers: Vec<Pointer> = addresses.chain(constants).map(Pointer).collect();
        let pack = Descriptor::new(backend, Kind::VariantPack)?;
        pack.set(attribute::VARIANT_PACK_UNIQUE_IDS, &ids)?;
        pack.set(attribute::VARIANT_PACK_DATA_POINTERS, &pointers)?;
        pack.set(attribute::VARIANT_PACK_WORKSPACE, &[Pointer(workspace as *mut c_void)])?;
        let pack = pack.finalize().context("binding the tensors of attention")?;
        // SAFETY: the caller's promise; constants are read before the call returns.
        unsafe { handle.execute(stream, &self.plan, &pack) }.context("running attention")
    }
}

/// Makes one descriptor of all operations.
fn describe(backend: &'static Backend, graph: &Graph, target: &Target<'_>) -> Result<Descriptor> {
    let operations: Vec<_> = graph.operations().iter().map(Descriptor::raw).collect();
    let descriptor = Descriptor::new(backend, Kind::OperationGraph)?;
    if let Target::Device(handle) = target {
        descriptor.set(attribute::OPERATIONGRAPH_HANDLE, &[handle.raw()])?;
    }
    descriptor.set(attribute::OPERATIONGRAPH_OPS, &operations)?;
    descriptor.finalize().context("describing attention")
}

/// Returns the engines that may run the operations, the best first.
fn rank(
    backend: &'static Backend,
    operations: &Descriptor,
    target: &Target<'_>,
) -> Result<Vec<Descriptor>> {
    let heuristics = Descriptor::new(backend, Kind::EngineHeuristics)?;
    heuristics.set(attribute::ENGINEHEUR_OPERATION_GRAPH, &[operations.raw()])?;
    heuristics.set(attribute::ENGINEHEUR_MODE, &[HeuristicMode::A])?;
    if let Target::Described(properties) = target {
        heuristics.set(attribute::ENGINEHEUR_DEVICEPROP, &[properties.raw()])?;
    }
    let heuristics = heuristics.finalize().context("ranking engines for attention")?;
    let count =
        heuristics.get::<super::backend::RawDescriptor>(attribute::ENGINEHEUR_RESULTS, &mut [])?;
    let configurations = (0..count)
        .map(|_| Descriptor::new(backend, Kind::EngineConfig))
        .collect::<Result<Vec<_>>>()?;
    let mut raw: Vec<_> = configurations.iter().map(Descriptor::raw).collect();
    let found = heuristics.get(attribute::ENGINEHEUR_RESULTS, &mut raw)?;
    Ok(configurations.into_iter().take(found).collect())
}

/// Returns the configuration of one engine.
fn configure(
    backend: &'static Backend,
    operations: &Descriptor,
    target: &Target<'_>,
    asked: &Engine,
) -> Result<Descriptor> {
    let engine = Descriptor::new(backend, Kind::Engine)?;
    engine.set(attribute::ENGINE_OPERATION_GRAPH, &[operations.raw()])?;
    engine.set(attribute::ENGINE_GLOBAL_INDEX, &[asked.index])?;
    if let Target::Described(properties) = target {
        engine.set(attribute::ENGINE_DEVICEPROP, &[properties.raw()])?;
    }
    let refused = || format!("engine {} does not take this attention", asked.index);
    let engine = engine.finalize().with_context(refused)?;
    let choices = asked.knobs.iter().map(|(knob, value)| {
        let choice = Descriptor::new(backend, Kind::KnobChoice)?;
        choice.set(attribute::KNOB_CHOICE_KNOB_TYPE, &[*knob])?;
        choice.set(attribute::KNOB_CHOICE_KNOB_VALUE, &[*value])?;
        choice.finalize()
    });
    let choices = choices.collect::<Result<Vec<_>>>()?;
    let raw: Vec<_> = choices.iter().map(Descriptor::raw).collect();
    let configuration = Descriptor::new(backend, Kind::EngineConfig)?;
    configuration.set(attribute::ENGINECFG_ENGINE, &[engine.raw()])?;
    configuration.set(attribute::ENGINECFG_KNOB_CHOICES, &raw)?;
    configuration.finalize().with_context(refused)
}

fn compile(
    backend: &'static Backend,
    configuration: &Descriptor,
    target: &Target<'_>,
) -> Result<Descriptor> {
    let plan = Descriptor::new(backend, Kind::ExecutionPlan)?;
    if let Target::Device(handle) = target {
        plan.set(attribute::EXECUTION_PLAN_HANDLE, &[handle.raw()])?;
    }
    plan.set(attribute::EXECUTION_PLAN_ENGINE_CONFIG, &[configuration.raw()])?;
    plan.finalize().context("compiling attention")
}

/// Returns the number of a configuration's engine.
fn engine_of(backend: &'static Backend, configuration: &Descriptor) -> Result<i64> {
    let engine = Descriptor::new(backend, Kind::Engine)?;
    configuration.get(attribute::ENGINECFG_ENGINE, &mut [engine.raw()])?;
    let mut index = [0i64];
    engine.get(attribute::ENGINE_GLOBAL_INDEX, &mut index)?;
    Ok(index[0])
}
