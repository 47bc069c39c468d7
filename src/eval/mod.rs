//! Evaluation: tasks with a right answer, and likelihoods.
//!
//! `task -> prompts -> answers -> score -> interval`: puzzles and questions, generated answers, how right they are by
//! d1's rules and by corrected ones, and how sure that is.  `likelihood` needs no answers.

mod arithmetic;
pub mod command;
pub mod countdown;
mod extract;
pub mod interval;
mod likelihood;
mod math;
pub mod score;
pub mod sudoku;
mod task;

pub use task::Task;
