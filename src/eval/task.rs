//! The tasks: what is asked, and what is right.

use super::countdown::{self, Puzzle};
use super::score::{self, Score};
use super::sudoku::{self, Split, World};
use crate::error::{Error, Problem, Result};
use crate::train::data::{self, Row};
use serde::Serialize;
use serde_json::{Value, json};

/// What is evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// 4x4 Sudoku: share of the empty cells that are right; generated where there is no --data
    Sudoku,
    /// Countdown: expressions from numbers; generated where there is no --data
    Countdown,
    /// Word problems: rows of openai/gsm8k (question, answer behind ####)
    Gsm8k,
    /// Mathematics: rows of HuggingFaceH4/MATH-500 (problem, answer)
    Math500,
    /// Negative log-likelihood of the answers of training data, in nats a token
    Nll,
    /// Multiple choice by likelihood: rows of HellaSwag (ctx, endings, label) or (question, choices, answer)
    Mc,
}

/// What is right.
#[derive(Clone, Debug, PartialEq)]
pub enum Truth {
    Sudoku { givens: String, solution: String },
    Countdown(Puzzle),
    Number(f64),
    Latex(String),
}

/// One question.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// What the prompt's template may name.
    pub values: Value,
    pub truth: Truth,
}

/// Numbers of a generated Countdown puzzle, as in d1's.
const NUMBERS: usize = 3;

impl Task {
    /// The built-in template of the prompt; the likelihoods have none.
    pub fn template(self) -> &'static str {
        match self {
            Task::Sudoku => include_str!("prompts/sudoku.jinja"),
            Task::Countdown => include_str!("prompts/countdown.jinja"),
            Task::Gsm8k => include_str!("prompts/gsm8k.jinja"),
            Task::Math500 => include_str!("prompts/math500.jinja"),
            Task::Nll | Task::Mc => "",
        }
    }

    /// The questions of `spec` (see `--data`), at most `count`; without it `count` generated ones.
    ///
    /// # Errors
    /// No data for a task that cannot be generated; every bad row.
    pub fn items(self, spec: Option<&str>, count: Option<usize>, seed: u64) -> Result<Vec<Item>> {
        let Some(spec) = spec else {
            let count = count.unwrap_or(256);
            return match self {
                Task::Sudoku => {
                    let world = World::new(seed);
                    Ok(world.puzzles(Split::HeldOut, count, seed).iter().map(of_sudoku).collect())
                }
                Task::Countdown => Ok(countdown::puzzles(count, NUMBERS, seed).into_iter().map(of_countdown).collect()),
                _ => {
                    let problem = Problem::new("--data", "this task needs its questions");
                    Err(Error::usage(problem.help("--data FILE.jsonl, or OWNER/NAME in the cache of Hugging Face")))
                }
            };
        };
        let rows = data::rows_of(spec, count, &mut |row| self.item(row))?;
        if rows.is_empty() {
            return Err(Error::Data { data: spec.into(), problems: vec![Problem::new(spec, "there is no question")] });
        }
        Ok(rows)
    }

    fn item(self, row: &Row) -> std::result::Result<Item, Problem> {
        let missing = |what: &str| {
            let names: Vec<&str> = row.keys().map(String::as_str).collect();
            Problem::new("", format!("a row needs {what}")).help(format!("its fields are {}", names.join(", ")))
        };
        let text = |names: &[&str]| {
            names.iter().find_map(|n| match row.get(*n)? {
                Value::String(text) => Some(text.clone()),
                Value::Number(number) => Some(number.to_string()),
                _ => None,
            })
        };
        match self {
            Task::Sudoku => {
                let (givens, solution) = (text(&["puzzle", "Puzzle"]), text(&["solution", "Solution"]));
                let (Some(givens), Some(solution)) = (givens, solution) else {
                    return Err(missing("puzzle and solution"));
                };
                // A table program may have eaten the zeros in front.
                let givens = format!("{givens:0>16}");
                let digits = |t: &str| t.len() == 16 && t.bytes().all(|b| b.is_ascii_digit());
                if !digits(&givens) || !digits(&solution) {
                    return Err(Problem::new("", "puzzle and solution are 16 digits each, 0 for an empty cell"));
                }
                Ok(Item { values: json!({ "puzzle": givens }), truth: Truth::Sudoku { givens, solution } })
            }
            Task::Countdown => {
                let whole = |t: &str| t.trim().parse::<i64>().ok();
                let list = ["nums", "numbers"].iter().find_map(|n| row.get(*n)?.as_array());
                let numbers: Option<Vec<i64>> = match (list, text(&["input"])) {
                    (Some(list), _) => list.iter().map(Value::as_i64).collect(),
                    (None, Some(joined)) => joined.split(',').map(whole).collect(),
                    _ => None,
                };
                match (numbers, text(&["target", "output"]).as_deref().and_then(whole)) {
                    (Some(numbers), Some(target)) => Ok(of_countdown(Puzzle { numbers, target })),
                    _ => Err(missing("nums and target, or input and output")),
                }
            }
            Task::Gsm8k => {
                let (question, answer) = (text(&["question"]), text(&["answer"]));
                let (Some(question), Some(answer)) = (question, answer) else {
                    return Err(missing("question and answer"));
                };
                let number = answer.rsplit("####").next().unwrap_or_default().trim().replace([',', '$'], "");
                let number = number.parse();
                let number = number.map_err(|_| Problem::new("", "the answer has no number behind ####"))?;
                Ok(Item { values: json!({ "question": question }), truth: Truth::Number(number) })
            }
            _ => match (text(&["problem", "question"]), text(&["answer"])) {
                (Some(question), Some(answer)) => {
                    Ok(Item { values: json!({ "question": question }), truth: Truth::Latex(answer) })
                }
                _ => Err(missing("problem and answer")),
            },
        }
    }
}

impl Item {
    /// How right a generated text is.
    pub fn score(&self, text: &str) -> Score {
        match &self.truth {
            Truth::Sudoku { givens, solution } => score::sudoku(text, givens, solution),
            Truth::Countdown(puzzle) => score::countdown(text, puzzle),
            Truth::Number(number) => score::gsm8k(text, *number),
            Truth::Latex(answer) => score::math500(text, answer),
        }
    }
}

fn of_sudoku(puzzle: &sudoku::Puzzle) -> Item {
    let text = |grid: &[u8]| grid.iter().map(u8::to_string).collect::<String>();
    let (givens, solution) = (text(&puzzle.givens), text(&puzzle.solution));
    Item { values: json!({ "puzzle": givens }), truth: Truth::Sudoku { givens, solution } }
}

fn of_countdown(puzzle: Puzzle) -> Item {
    let values = json!({ "numbers": puzzle.numbers, "target": puzzle.target });
    Item { values, truth: Truth::Countdown(puzzle) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(task: Task, row: Value) -> std::result::Result<Item, String> {
        let Value::Object(row) = row else { panic!("no object") };
        task.item(&row).map_err(|p| p.message)
    }

    #[test]
    fn rows_of_the_published_files() {
        let of = |task, row| item(task, row).unwrap().truth;
        assert_eq!(of(Task::Gsm8k, json!({ "question": "q", "answer": "so\n#### 1,234" })), Truth::Number(1234.0));
        assert_eq!(of(Task::Math500, json!({ "problem": "p", "answer": "\\pi" })), Truth::Latex("\\pi".into()));
        let puzzle = Truth::Countdown(Puzzle { numbers: vec![1, 2, 30], target: 33 });
        assert_eq!(of(Task::Countdown, json!({ "nums": [1, 2, 30], "target": 33 })), puzzle);
        assert_eq!(of(Task::Countdown, json!({ "input": "1,2,30", "output": "33" })), puzzle);
        let row = json!({ "Puzzle": "300000000000000", "Solution": "1".repeat(16) });
        let Truth::Sudoku { givens, .. } = of(Task::Sudoku, row) else { panic!() };
        assert_eq!(givens, "0300000000000000");
        assert!(item(Task::Sudoku, json!({ "puzzle": "12", "solution": "12" })).unwrap_err().contains("16 digits"));
        assert!(item(Task::Gsm8k, json!({ "question": "q", "answer": "#### x" })).is_err());
        assert!(item(Task::Math500, json!({})).is_err());
    }

    #[test]
    fn generated_items_carry_their_truth() {
        let sudoku = &Task::Sudoku.items(None, Some(3), 1).unwrap()[0];
        let Truth::Sudoku { solution, .. } = &sudoku.truth else { panic!() };
        let right = sudoku.score(&format!("<answer>{solution}</answer>"));
        assert_eq!(right, Score { d1: 1.0, corrected: 1.0 });
        assert_eq!(Task::Countdown.items(None, None, 1).unwrap().len(), 256);
        assert!(Task::Gsm8k.items(None, None, 1).is_err());
    }
}
