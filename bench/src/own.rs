//! Our side of a comparison: sealed operations on a lease, plain ones of as many bytes, and plain ones of the bytes that the
//! sealed ones move.

use std::cell::RefCell;
use std::collections::BTreeSet;

use crate::borrowed::Borrowed;
use crate::contest::{Contest, Entry};
use crate::cpus::Cpus;
use crate::ends::{Ends, MAX_SIZE};
use crate::error::BenchError;
use crate::figures::Plan;
use crate::peers::op;
use crate::pipeline::{Pipeline, Shape};
use crate::rates::Pace;
use crate::raw::{Kind, Ours};
use crate::report::Report;
use crate::systems::System;

/// What is asked of everybody.
pub(crate) struct Task {
    /// Operations.
    pub(crate) kinds: Vec<Kind>,
    /// Bytes of one.
    pub(crate) sizes: BTreeSet<usize>,
    /// Many at once.
    pub(crate) shapes: Vec<Shape>,
}

/// All of it, connected.
pub(crate) struct Own {
    sealed: Option<RefCell<Borrowed>>,
    plain: Ours,
    /// Of the sizes that sealed operations move, where they are none of those asked for.
    longer: Ours,
    pipelines: Vec<(Shape, RefCell<Pipeline>)>,
    /// Sizes whose sealed operations have a plain one beside them.
    strides: BTreeSet<usize>,
}

impl Own {
    /// Starts what is wanted of it: sealed, raw, or both.
    pub(crate) fn start(task: &Task, ends: &Ends, sealed: bool, raw: bool, cpus: Cpus) -> Result<Self, BenchError> {
        let Task { kinds, sizes, shapes } = task;
        let one_sided: Vec<_> = kinds.iter().copied().filter(|kind| op(*kind).is_some()).collect();
        let sealed = match sealed && !one_sided.is_empty() {
            true => {
                let deep = shapes.iter().map(|shape| shape.size * shape.depth as usize);
                let most = sizes.iter().copied().chain(deep).max().unwrap_or(0);
                Some(RefCell::new(Borrowed::start(ends, most, cpus)?))
            }
            false => None,
        };
        let moved = |size: &usize| Some(sealed.as_ref().filter(|_| raw)?.borrow().wire_bytes(*size));
        let strides: BTreeSet<_> =
            sizes.iter().copied().filter(|size| moved(size).is_some_and(|moved| moved <= MAX_SIZE)).collect();
        let longer: BTreeSet<_> = strides.iter().filter_map(moved).collect();
        let longer: Vec<_> = longer.difference(sizes).copied().collect();
        let plain: Vec<_> = sizes.iter().copied().filter(|_| raw).collect();
        let pipelines = shapes.iter().filter(|_| raw && !one_sided.is_empty());
        let pipelines = pipelines.map(|shape| Ok((*shape, RefCell::new(Pipeline::start(ends, *shape, cpus)?))));
        let pipelines = pipelines.collect::<Result<_, BenchError>>()?;
        let plain = Ours::start(ends, kinds, &plain, cpus)?;
        let longer = Ours::start(ends, &one_sided, &longer, cpus)?;
        Ok(Self { sealed, plain, longer, pipelines, strides })
    }

    /// Takes part.
    pub(crate) fn enter<'a>(&'a mut self, task: &Task, contest: &mut Contest<'a>) {
        let Self { sealed, plain, longer, pipelines, strides } = self;
        let arguments: Vec<_> = std::env::args().skip(1).collect();
        let command = format!("overbank-bench {}", arguments.join(" "));
        let entry = |system, kind, size, depth: u32| {
            let moved = match (system, &*sealed, op(kind)) {
                (System::Sealed | System::RawStride, Some(sealed), Some(op)) => {
                    sealed.borrow().wire_bytes_of(op, size, depth)
                }
                _ => size,
            };
            Entry { system, kind, size, depth, moved, command: command.clone() }
        };
        for (kind, size, mut subject) in plain.subjects("") {
            contest.single(entry(System::Raw, kind, size, 1), move |plan| (subject.turn)(plan));
        }
        for (_, _, subject) in longer.subjects(&format!("{}_", System::RawStride.stem())) {
            contest.subject(subject);
        }
        for (kind, op) in task.kinds.iter().filter_map(|kind| Some((*kind, op(*kind)?))) {
            for &size in strides.iter() {
                contest.shared(entry(System::RawStride, kind, size, 1));
            }
            for (shape, pipeline) in pipelines.iter() {
                let turn = move |pace: &Pace| pipeline.borrow_mut().turn(op, pace);
                contest.many(entry(System::Raw, kind, shape.size, shape.depth), turn);
            }
            let Some(sealed) = &*sealed else { continue };
            for &size in &task.sizes {
                let turn = move |plan: &Plan| sealed.borrow_mut().times(op, size, plan);
                contest.single(entry(System::Sealed, kind, size, 1), turn);
            }
            for &Shape { size, depth, .. } in &task.shapes {
                let turn = move |pace: &Pace| sealed.borrow_mut().rate(op, size, depth, pace);
                contest.many(entry(System::Sealed, kind, size, depth), turn);
            }
        }
    }

    /// Notes in the report where our ends are.
    pub(crate) fn describe(&self, ends: &Ends, report: &mut Report) {
        self.plain.describe(ends, report);
    }

    /// Gives back what was leased.
    pub(crate) fn finish(self) -> Result<(), BenchError> {
        self.sealed.map_or(Ok(()), |sealed| sealed.into_inner().finish())
    }
}
