//! Rules as text: the syntax tree, the reader, the computed attributes and guards, and the checker.
//!
//! The language is described in `rules/README.md`.

pub mod builtin;
pub mod check;
pub mod library;
pub mod parse;
pub mod template;
pub mod user;

use crate::ir::sexpr::Span;
use crate::ir::{DType, Dim, Lit, Op};
use std::fmt;
use std::sync::Arc;

/// What a rule claims.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// An equality, used from left to right.
    Rewrite,
    /// A name unfolds.
    Define,
    /// The gradient row of an operator.
    Vjp,
    /// A composite's meaning in simpler operators.
    Lower,
}

/// What the emitted graph may contain.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, clap::ValueEnum, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// Standard ONNX operators only: runs wherever ONNX runs.
    #[default]
    Portable,
    /// Also the operators of ONNX Runtime's CPU build in domain `com.microsoft`.
    Cpu,
    /// Operators of either domain that have CUDA kernels; and bf16, which the CPU cannot multiply.
    Cuda,
}

impl Target {
    pub fn name(self) -> &'static str {
        ["portable", "cpu", "cuda"][self as usize]
    }

    /// Whether a rule that is marked for `marked` may be used.
    pub fn takes(self, marked: Option<Target>) -> bool {
        marked.is_none_or(|t| t == self || (t == Target::Cpu && self == Target::Cuda))
    }
}

/// A variable's name, without the question mark.
pub type Var = Arc<str>;

/// A term of a rule.
#[derive(Clone, PartialEq, Debug)]
pub enum Term {
    Var(Var),
    Lit(Lit),
    Op(Op, Vec<Term>),
    /// A computed attribute of `builtin::COMPUTED`; right sides only.
    Call(Arc<str>, Vec<Term>),
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Term::Var(v) => write!(f, "?{v}"),
            Term::Lit(l) => l.fmt(f),
            Term::Op(op, args) => call(f, op.name(), args),
            Term::Call(name, args) => call(f, name, args),
        }
    }
}

fn call(f: &mut fmt::Formatter<'_>, head: &str, args: &[Term]) -> fmt::Result {
    write!(f, "({head}")?;
    args.iter().try_for_each(|a| write!(f, " {a}"))?;
    f.write_str(")")
}

/// A condition of `:when`: a guard of `builtin::GUARDS` and its arguments.
#[derive(Clone, PartialEq, Debug)]
pub struct Guard {
    pub name: Arc<str>,
    pub args: Vec<Term>,
}

impl fmt::Display for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        call(f, &self.name, &self.args)
    }
}

/// What a `:sample` clause says of a variable.
#[derive(Clone, PartialEq, Debug)]
pub enum Sample {
    /// A random tensor; words in the shape are sizes drawn by the checker.
    Tensor(DType, Vec<Dim>),
    Lit(Lit),
}

/// One rule of a file.
#[derive(Clone, Debug)]
pub struct Rule {
    pub kind: Kind,
    /// Kebab-case and unique; a `vjp` row is named `d-OPERATOR`.
    pub name: Arc<str>,
    /// The comment above the rule: its mathematics.
    pub doc: String,
    pub left: Term,
    /// One term; for a `vjp` row one an operand, `None` where there is no gradient.
    pub right: Vec<Option<Term>>,
    /// `:let` bindings, in order; each may use those before it.
    pub lets: Vec<(Var, Term)>,
    pub guards: Vec<Guard>,
    pub search: bool,
    /// Only for this target; all where `None`.
    pub target: Option<Target>,
    pub samples: Vec<(Var, Sample)>,
    /// The left side's one operand stands for any number of operands (`?x...`).
    pub variadic: bool,
    /// The file's name and the rule's place in it.
    pub file: Arc<str>,
    pub span: Span,
}
