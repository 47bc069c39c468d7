//! Tasks with a right answer, to see whether training helps.

pub mod sudoku;
