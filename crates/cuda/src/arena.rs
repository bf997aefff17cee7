//! Where the buffers of a program lie: one allocation, planned ahead.
//!
//! Two buffers may share memory if everything that touches the one is certain to have happened before anything that
//! touches the other: within a stream, or through [`Op::Wait`]. The tapes of a program run one
//! after the other.

use std::collections::BTreeMap;

use crate::tape::{BufferId, Node, Op, Program, Role};

/// Buffers begin at multiples of this.
pub const ALIGNMENT: usize = 512;

/// Offsets of all buffers but the persistent ones, which live outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    places: Vec<Option<usize>>,
    bytes: usize,
}

/// When a buffer is touched: by stream, the first and the last of the program's nodes (by position in the stream).
#[derive(Debug, Clone)]
struct Life {
    /// `(first, last)` by stream.
    spans: Vec<Option<(usize, usize)>>,
    /// What is known to have happened, by stream, when each stream first touches the buffer.
    known: Vec<Option<Vec<usize>>>,
}

impl Plan {
    /// Plans a program.
    pub fn new(program: &Program) -> Self {
        let lives = lives(program);
        let mut order: Vec<usize> = (0..program.buffers.len())
            .filter(|&id| program.buffers[id].role != Role::Persistent && lives[id].is_some())
            .collect();
        // Large ones first; of equal ones the earlier.
        order.sort_by_key(|&id| (std::cmp::Reverse(program.buffers[id].bytes), id));
        let mut places: Vec<Option<usize>> = vec![None; program.buffers.len()];
        let mut placed: Vec<usize> = Vec::new();
        let mut total = 0;
        for id in order {
            let bytes = program.buffers[id].bytes.next_multiple_of(ALIGNMENT).max(ALIGNMENT);
            let mut taken: Vec<(usize, usize)> = placed
                .iter()
                .filter(|&&other| conflict(program, &lives, id, other))
                .filter_map(|&other| places[other].map(|at| (at, program.buffers[other].bytes)))
                .collect();
            taken.sort_unstable();
            let mut at = 0;
            for (start, len) in taken {
                if at + bytes <= start {
                    break;
                }
                at = at.max((start + len).next_multiple_of(ALIGNMENT));
            }
            places[id] = Some(at);
            total = total.max(at + bytes);
            placed.push(id);
        }
        Plan { places, bytes: total }
    }

    /// A buffer's offset; `None` for persistent buffers and for those that nothing touches.
    pub fn place(&self, id: BufferId) -> Option<usize> {
        self.places[id.0]
    }

    /// Bytes of the allocation.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Bytes of the persistent buffers of programs that are there together: those of one name are one, as long as the longest.
pub fn persistent_bytes<'p>(programs: impl IntoIterator<Item = &'p Program>) -> usize {
    let mut by_name = BTreeMap::new();
    for buffer in programs.into_iter().flat_map(|program| &program.buffers) {
        if buffer.role == Role::Persistent {
            let longest = by_name.entry(buffer.name.as_str()).or_insert(0);
            *longest = buffer.bytes.next_multiple_of(ALIGNMENT).max(*longest);
        }
    }
    by_name.values().sum()
}

/// Beyond this number [`largest_that_fits`] does not look.
const MOST: usize = 1 << 20;

/// The largest number up to 2^20 for which `bytes` stays within `limit`, for a function that grows; 0 if not even 1 does.
///
/// Each call of `bytes` may mean to plan a program, so they are few: some five where growth is about even. It is looked for
/// near `near` first.
pub fn largest_that_fits(limit: u64, near: usize, mut bytes: impl FnMut(usize) -> u64) -> usize {
    /// One guess in so many halves what is left, in case growth is not even at all.
    const HALVES: usize = 4;
    // Of the largest number that is known to fit and of the smallest that does not: 0 and one too many before any is.
    let (mut low, mut high) = (0, MOST + 1);
    let mut last: Option<(usize, u64)> = None;
    let mut guess = near.clamp(1, MOST);
    for round in 1.. {
        let got = bytes(guess);
        if got <= limit {
            low = guess
        } else {
            high = guess
        }
        if high - low <= 1 {
            break;
        }
        // Where the line through the last two points meets the limit; a second point is made where there is only one.
        let along = last.and_then(|(x, y)| {
            let slope = (got as f64 - y as f64) / (guess as f64 - x as f64);
            (slope > 0.0).then(|| guess as f64 + (limit as f64 - got as f64) / slope)
        });
        last = Some((guess, got));
        let next = match along {
            _ if round % HALVES == 0 && high <= MOST => low + (high - low) / 2,
            Some(along) => along as usize,
            None if got <= limit => guess.saturating_mul(2),
            None => guess / 2,
        };
        guess = next.clamp(low + 1, high - 1);
    }
    low
}

/// When each buffer is touched.
fn lives(program: &Program) -> Vec<Option<Life>> {
    let n_streams = program.tapes.iter().map(|tape| tape.n_streams()).max().unwrap_or(1);
    let mut lives: Vec<Option<Life>> = vec![None; program.buffers.len()];
    // Nodes so far by stream, and by stream what it knows of each stream's nodes.
    let mut done = vec![0; n_streams];
    let mut clocks = vec![vec![0; n_streams]; n_streams];
    for tape in &program.tapes {
        for Node { stream, op } in &tape.nodes {
            if let Op::Wait { other } = op {
                let theirs = clocks[*other].clone();
                for (mine, theirs) in clocks[*stream].iter_mut().zip(theirs) {
                    *mine = (*mine).max(theirs);
                }
                continue;
            }
            done[*stream] += 1;
            let now = done[*stream];
            clocks[*stream][*stream] = now;
            for view in op.views() {
                let life = lives[view.buffer.0].get_or_insert_with(|| Life {
                    spans: vec![None; n_streams],
                    known: vec![None; n_streams],
                });
                match &mut life.spans[*stream] {
                    Some((_, last)) => *last = now,
                    span => {
                        *span = Some((now, now));
                        life.known[*stream] = Some(clocks[*stream].clone());
                    }
                }
            }
        }
        // The next tape begins when all streams are done.
        clocks = vec![done.clone(); n_streams];
    }
    lives
}

/// Whether two buffers may not share memory.
fn conflict(program: &Program, lives: &[Option<Life>], a: usize, b: usize) -> bool {
    let (Some(life_a), Some(life_b)) = (&lives[a], &lives[b]) else { return false };
    // What the host writes or reads may be on its way while something else runs.
    let scratch = |id: usize| program.buffers[id].role == Role::Scratch;
    !(scratch(a) && scratch(b) && (before(life_a, life_b) || before(life_b, life_a)))
}

/// Whether everything that touches `a` has happened when anything that touches `b` begins.
fn before(a: &Life, b: &Life) -> bool {
    let firsts = b.spans.iter().zip(&b.known).enumerate();
    let mut firsts =
        firsts.filter_map(|(stream, (span, known))| Some((stream, span.as_ref()?.0, known.as_ref()?)));
    firsts.all(|(stream, first, known)| {
        a.spans.iter().enumerate().all(|(other, span)| {
            let limit = if other == stream { first - 1 } else { known[other] };
            span.is_none_or(|(_, last)| last <= limit)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::Element;
    use crate::tape::{Tape, View};
    use proptest::prelude::*;

    fn touch(to: View) -> Op {
        Op::Fill { to, bytes: 1, byte: 0 }
    }

    /// A program of scratch buffers of these sizes; of each node the stream and the buffer, or the stream that it waits
    /// for.
    fn program(sizes: &[usize], nodes: &[(usize, Result<usize, usize>)], n_tapes: usize) -> Program {
        let mut program = Program::new(Element::F32);
        let ids: Vec<BufferId> = sizes.iter().map(|&n| program.buffer("", n, Role::Scratch)).collect();
        for part in nodes.chunks(nodes.len().div_ceil(n_tapes).max(1)) {
            let mut tape = Tape::default();
            for &(stream, what) in part {
                match what {
                    Ok(buffer) => tape.push(stream, touch(ids[buffer % ids.len()].view())),
                    Err(other) => tape.wait(stream, other),
                }
            }
            program.tapes.push(tape);
        }
        program
    }

    /// A node's stream, and the buffer that it touches.
    type Touch = (usize, Option<usize>);

    /// All orders between nodes that are certain, by the definition: a node follows its stream's one before, what is
    /// waited for, and all nodes of earlier tapes.
    fn follows(program: &Program) -> (Vec<Touch>, Vec<Vec<bool>>) {
        let mut nodes: Vec<Touch> = Vec::new();
        let mut follows: Vec<Vec<bool>> = Vec::new();
        for tape in &program.tapes {
            let begin = nodes.len();
            for node in &tape.nodes {
                let mut row = vec![false; nodes.len()];
                row[..begin].fill(true);
                let mut after = |stream: usize| {
                    if let Some(last) = (begin..nodes.len()).rev().find(|&i| nodes[i].0 == stream) {
                        row[last] = true;
                        for i in 0..last {
                            row[i] |= follows[last][i];
                        }
                    }
                };
                after(node.stream);
                let mut buffer = None;
                match &node.op {
                    Op::Wait { other } => after(*other),
                    op => buffer = op.views().first().map(|view| view.buffer.0),
                }
                nodes.push((node.stream, buffer));
                follows.push(row);
            }
        }
        (nodes, follows)
    }

    proptest! {
        #[test]
        fn no_two_live_buffers_overlap(
            sizes in prop::collection::vec(1usize..5000, 1..8),
            nodes in prop::collection::vec((0usize..3, prop_oneof![3 => (0usize..8).prop_map(Ok), 1 => (0usize..3).prop_map(Err)]), 1..40),
            n_tapes in 1usize..3,
        ) {
            let program = program(&sizes, &nodes, n_tapes);
            let plan = Plan::new(&program);
            let (nodes, follows) = follows(&program);
            let span = |id: usize| plan.place(BufferId(id)).map(|at| (at, at + sizes[id]));
            for a in 0..sizes.len() {
                if let Some((at, end)) = span(a) {
                    prop_assert!(at % ALIGNMENT == 0 && end <= plan.bytes());
                }
                for b in 0..a {
                    let (Some(x), Some(y)) = (span(a), span(b)) else { continue };
                    if x.0 >= y.1 || y.0 >= x.1 {
                        continue;
                    }
                    // They overlap: one must be done with before the other begins.
                    let uses = |id: usize| {
                        nodes.iter().enumerate().filter(move |(_, n)| n.1 == Some(id)).map(|(i, _)| i)
                    };
                    let ordered = |a: usize, b: usize| uses(b).all(|j| uses(a).all(|i| i < j && follows[j][i]));
                    prop_assert!(ordered(a, b) || ordered(b, a), "{a} and {b} overlap: {x:?} {y:?}");
                }
            }
        }
    }

    #[test]
    fn buffers_in_turn_share_memory() {
        let in_turn = [(0, Ok(0)), (0, Ok(1)), (0, Ok(2))];
        assert_eq!(Plan::new(&program(&[512; 3], &in_turn, 1)).bytes(), 512);
        let at_once = [(0, Ok(0)), (1, Ok(1)), (0, Err(1)), (0, Ok(2))];
        assert_eq!(Plan::new(&program(&[512; 3], &at_once, 1)).bytes(), 1024);
    }

    #[test]
    fn the_largest_batch_is_found_in_few_steps() {
        for near in [1, 8, 64, 5000] {
            for limit in [0u64, 9, 10, 19, 20, 99, 100, 101, 5000, 123_456] {
                let mut n_calls = 0;
                let got = largest_that_fits(limit, near, |n| {
                    n_calls += 1;
                    10 * n as u64
                });
                assert_eq!(got, limit as usize / 10, "{limit} near {near}");
                // From far above to 0 it takes halves.
                assert!(n_calls <= if got < 10 { 16 } else { 6 }, "{limit} near {near}: {n_calls} calls");
            }
        }
        // What grows in steps, or more and more, or not at all.
        let stairs = |n: usize| (n / 7 * 70) as u64 + 3;
        let square = |n: usize| (n as u64).pow(2);
        for limit in [2, 3, 69, 73, 1000, 54_321] {
            for near in [1, 60, 4000] {
                let got = largest_that_fits(limit, near, stairs);
                assert!((got == 0 || stairs(got) <= limit) && stairs(got + 1) > limit, "{limit} near {near}");
                assert_eq!(
                    largest_that_fits(limit, near, square),
                    limit.isqrt() as usize,
                    "{limit} near {near}"
                );
            }
        }
        assert_eq!(largest_that_fits(5, 64, |_| 5), MOST);
        assert_eq!(largest_that_fits(5, 64, |_| 6), 0);
    }

    #[test]
    fn persistent_buffers_of_one_name_count_once() {
        let program = |bytes: usize| {
            let mut program = Program::new(Element::F32);
            program.buffer("parameters", 1000, Role::Persistent);
            program.buffer("gradients", bytes, Role::Persistent);
            program.buffer("scratch", 1 << 20, Role::Scratch);
            program
        };
        let (small, large) = (program(512), program(2048));
        assert_eq!(persistent_bytes([&small]), 1024 + 512);
        assert_eq!(persistent_bytes([&small, &large, &small]), 1024 + 2048);
    }
}
