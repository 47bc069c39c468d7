//! Choosing one candidate a class.

use super::components::components;
use super::{Candidate, Table};
use std::collections::BinaryHeap;

/// How far two cones are walked down before they count as equal below.  Candidates of one class differ
/// in a handful of nodes; the bound keeps a strange pair from costing a walk through the whole graph.
const WALK: usize = 4096;

/// How many classes that both cones need are passed in a row before all below count as needed by both: a
/// table that every layer reads would keep the walk going to the first layer.
const SHARED: usize = 256;

/// Passes over a circle of classes, and over the whole graph: each only lowers the cost, and what is left
/// after these is small.
const PASSES: usize = 6;

const NONE: u32 = u32::MAX;

/// One candidate for every class that can be computed, without circles.
pub(super) struct Selection<'t> {
    table: &'t Table,
    root: u32,
    /// Candidate by class.
    chosen: Vec<u32>,
    /// A chosen candidate's children have smaller ranks than its class.
    rank: Vec<u64>,
    next_rank: u64,
    component: Vec<u32>,
    /// Users of each class in the graph from the root.
    users: Vec<u32>,
    walk: Walk,
}

/// The working memory of `cheaper`.
struct Walk {
    /// Which of the two cones reach a class: bit 1, bit 2.
    sides: Vec<u8>,
    queue: BinaryHeap<(u64, u32)>,
    touched: Vec<u32>,
    /// Queued classes that only the first, only the second cone reaches so far.
    single: [usize; 2],
}

impl<'t> Selection<'t> {
    /// `None` if the root cannot be computed.
    pub fn new(table: &'t Table, root: u32) -> Option<Self> {
        let n = table.classes.len();
        let walk = Walk { sides: vec![0; n], queue: BinaryHeap::new(), touched: Vec::new(), single: [0; 2] };
        let (chosen, rank, component, users) = (vec![NONE; n], vec![0; n], vec![NONE; n], vec![0; n]);
        let mut selection = Selection { table, root, chosen, rank, next_rank: 0, component, users, walk };
        let circles = components(table, root);
        for (k, members) in circles.iter().enumerate() {
            members.iter().for_each(|c| selection.component[*c as usize] = k as u32);
        }
        circles.iter().for_each(|members| selection.settle(members));
        if selection.chosen[root as usize] == NONE {
            return None;
        }
        selection.acquire(&[root]);
        selection.refine();
        Some(selection)
    }

    pub fn candidate(&self, class: u32) -> &'t Candidate {
        &self.table.candidates(class)[self.chosen[class as usize] as usize]
    }

    /// The classes of the graph, operands before users.
    pub fn order(&self) -> Vec<u32> {
        let mut seen = vec![false; self.chosen.len()];
        let mut order = Vec::new();
        let mut stack = vec![(self.root, 0)];
        seen[self.root as usize] = true;
        while let Some((class, k)) = stack.pop() {
            match self.candidate(class).children.get(k) {
                None => order.push(class),
                Some(&child) => {
                    stack.push((class, k + 1));
                    if !std::mem::replace(&mut seen[child as usize], true) {
                        stack.push((child, 0));
                    }
                }
            }
        }
        order
    }

    pub fn cost(&self) -> u64 {
        self.order().iter().fold(0, |sum, c| sum.saturating_add(self.candidate(*c).cost))
    }

    /// Chooses for the classes of one circle; everything below is settled.
    fn settle(&mut self, members: &[u32]) {
        let mut changed = true;
        while changed {
            changed = false;
            for &class in members {
                let first = (0..self.table.candidates(class).len()).find(|k| self.possible(class, *k));
                if let (NONE, Some(k)) = (self.chosen[class as usize], first) {
                    self.chosen[class as usize] = k as u32;
                    self.rank[class as usize] = self.next_rank;
                    self.next_rank += 1;
                    changed = true;
                }
            }
        }
        for _ in 0..PASSES {
            let mut changed = false;
            for &class in members {
                for k in 0..self.table.candidates(class).len() {
                    let now = self.chosen[class as usize];
                    if now != NONE && k as u32 != now && self.possible(class, k) && self.cheaper(class, k, now as usize)
                    {
                        self.chosen[class as usize] = k as u32;
                        self.rank_again(members);
                        changed = members.len() > 1;
                    }
                }
            }
            if !changed {
                break;
            }
        }
    }

    /// Whether a candidate's children are computed, and none of them by way of the class itself.
    fn possible(&self, class: u32, k: usize) -> bool {
        let circle = self.component[class as usize];
        let children = &self.table.candidates(class)[k].children;
        if children.iter().any(|c| *c == class || self.chosen[*c as usize] == NONE) {
            return false;
        }
        let inside = |c: &&u32| self.component[**c as usize] == circle;
        let mut stack: Vec<u32> = children.iter().filter(inside).copied().collect();
        let mut seen = stack.clone();
        while let Some(c) = stack.pop() {
            if c == class {
                return false;
            }
            for child in self.candidate(c).children.iter().filter(inside) {
                if !seen.contains(child) {
                    seen.push(*child);
                    stack.push(*child);
                }
            }
        }
        true
    }

    /// Ranks for one circle whose choices have changed.
    fn rank_again(&mut self, members: &[u32]) {
        let mut left: Vec<u32> = members.iter().copied().filter(|c| self.chosen[*c as usize] != NONE).collect();
        while !left.is_empty() {
            let waits = |c: &u32| self.candidate(*c).children.iter().any(|x| left.contains(x));
            let (later, ready): (Vec<u32>, Vec<u32>) = left.iter().copied().partition(waits);
            if ready.is_empty() {
                break;
            }
            for c in ready {
                self.rank[c as usize] = self.next_rank;
                self.next_rank += 1;
            }
            left = later;
        }
    }

    /// Whether candidate `a` of a class with all it needs costs less than candidate `b` with all it needs.
    ///
    /// Walks down from both at once, users before operands, until whatever is left is needed by both.
    fn cheaper(&mut self, class: u32, a: usize, b: usize) -> bool {
        let candidates = self.table.candidates(class);
        let mut sums = [candidates[a].cost, candidates[b].cost];
        for (side, k) in [(1, a), (2, b)] {
            candidates[k].children.iter().for_each(|c| self.reach(*c, side));
        }
        let mut shared = 0;
        for _ in 0..WALK {
            // A cone that has nothing of its own left grows no more, the other can only grow.
            let ended = match self.walk.single {
                [0, 0] => true,
                [0, _] => sums[0] < sums[1],
                [_, 0] => sums[1] <= sums[0],
                _ => false,
            };
            if ended || shared == SHARED {
                break;
            }
            let Some((_, c)) = self.walk.queue.pop() else { break };
            let side = self.walk.sides[c as usize];
            let candidate = self.candidate(c);
            shared += 1;
            if side != 3 {
                let sum = &mut sums[usize::from(side) - 1];
                *sum = sum.saturating_add(candidate.cost);
                self.walk.single[usize::from(side) - 1] -= 1;
                shared = 0;
            }
            candidate.children.iter().for_each(|x| self.reach(*x, side));
        }
        for c in self.walk.touched.drain(..) {
            self.walk.sides[c as usize] = 0;
        }
        self.walk.queue.clear();
        self.walk.single = [0; 2];
        sums[0] < sums[1]
    }

    /// Marks a class as needed by the cones of `side`.
    fn reach(&mut self, class: u32, side: u8) {
        // Leaves and literals are free on either side; following them would lead far from here.
        let candidate = self.candidate(class);
        if candidate.cost == 0 && candidate.children.is_empty() {
            return;
        }
        let before = self.walk.sides[class as usize];
        let after = before | side;
        self.walk.sides[class as usize] = after;
        if before == 0 {
            self.walk.queue.push((self.rank[class as usize], class));
            self.walk.touched.push(class);
            if after != 3 {
                self.walk.single[usize::from(after) - 1] += 1;
            }
        } else if before != 3 && after == 3 {
            self.walk.single[usize::from(before) - 1] -= 1;
        }
    }

    /// Swaps single choices while that makes the whole graph cheaper: here a node that something else
    /// needs anyway is free, which `settle` could not know.
    fn refine(&mut self) {
        for _ in 0..PASSES {
            let mut live = self.order();
            live.retain(|c| self.table.candidates(*c).len() > 1);
            let mut changed = false;
            for class in live.into_iter().rev() {
                for k in 0..self.table.candidates(class).len() {
                    let now = self.chosen[class as usize];
                    if self.users[class as usize] > 0 && k as u32 != now && self.possible(class, k) {
                        changed |= self.try_swap(class, k);
                    }
                }
            }
            if !changed {
                break;
            }
        }
    }

    fn try_swap(&mut self, class: u32, k: usize) -> bool {
        let (old, new) = (self.candidate(class), &self.table.candidates(class)[k]);
        // Acquired before released: what both need is never taken apart.
        let more = new.cost.saturating_add(self.acquire(&new.children));
        let less = old.cost.saturating_add(self.release(&old.children));
        if more < less {
            self.chosen[class as usize] = k as u32;
            return true;
        }
        self.acquire(&old.children);
        self.release(&new.children);
        false
    }

    /// Adds a user to each class; the cost of what becomes needed by it.
    fn acquire(&mut self, classes: &[u32]) -> u64 {
        let mut sum = 0u64;
        let mut stack = classes.to_vec();
        while let Some(c) = stack.pop() {
            self.users[c as usize] += 1;
            if self.users[c as usize] == 1 {
                let candidate = self.candidate(c);
                sum = sum.saturating_add(candidate.cost);
                stack.extend(candidate.children.iter());
            }
        }
        sum
    }

    /// Takes a user from each class; the cost of what nothing needs any more.
    fn release(&mut self, classes: &[u32]) -> u64 {
        let mut sum = 0u64;
        let mut stack = classes.to_vec();
        while let Some(c) = stack.pop() {
            self.users[c as usize] -= 1;
            if self.users[c as usize] == 0 {
                let candidate = self.candidate(c);
                sum = sum.saturating_add(candidate.cost);
                stack.extend(candidate.children.iter());
            }
        }
        sum
    }
}
