//! `weftc data`: a look at training data.

use crate::error::Result;
use crate::generate::language::{Language, LanguageArgs};
use crate::stdout::{coloured, print};
use crate::train::data::{self, Columns, Padding, Turns};
use crate::train::sampler::Sampler;
use clap::Args;
use std::path::PathBuf;

/// The flags of `weftc data`.
#[derive(Args)]
pub struct DataArgs {
    /// As `run --data`: files, folders, `s1k`, joined by `+`, with slices
    data: String,
    /// Rows to show
    #[arg(short = 'n', long, value_name = "N", default_value_t = 3)]
    rows: usize,
    /// The model whose folder holds the tokenizer, where --tokenizer does not name it
    #[arg(long, value_name = "MODEL.onnx")]
    model: Option<PathBuf>,
    #[command(flatten)]
    language: LanguageArgs,
    /// Fields of other names: prompt=question,answer=solution
    #[arg(long, value_name = "FIELD=COLUMN,..")]
    columns: Option<String>,
    /// What is supervised behind an answer that is text
    #[arg(long, value_enum, default_value_t)]
    supervise_padding: Padding,
    /// Which turns of a conversation are answers
    #[arg(long, value_enum, default_value_t)]
    turns: Turns,
    /// Cut longer rows to so many tokens
    #[arg(long, value_name = "L")]
    max_length: Option<usize>,
}

/// Shows the first rows as the model sees them, and how long all are.
///
/// # Errors
/// The command line; every bad row.
pub fn data(args: &DataArgs) -> Result<()> {
    // Rows need no mask to be looked at: -1 is no token.
    let language = Language::find_or(&args.language, args.model.as_deref(), Some(-1))?;
    let encoder = data::Encoder {
        columns: args.columns.as_deref().map(Columns::parse).transpose()?.unwrap_or_default(),
        padding: args.supervise_padding,
        turns: args.turns,
        ..language.encoder(i64::MAX, args.max_length)
    };
    let dataset = data::load(&args.data, &encoder)?;
    language.notes.iter().for_each(|note| eprintln!("{note}"));
    let shown = &dataset.samples[..args.rows.min(dataset.samples.len())];
    let colour = coloured(&std::io::stdout());
    let mut text = data::preview(shown, language.tokenizer.as_ref(), language.pad_id, colour);
    text += &summary(&dataset);
    text += &padding(&dataset);
    print(&text)
}

/// Sequences a micro-batch, where `weftc run` is told no other number.
const BATCH: usize = 8;

/// What share of the tokens that a run feeds is padding, by how it makes its batches; nothing where none is.
fn padding(dataset: &data::Dataset) -> String {
    let length = |k: usize| dataset.samples[k].tokens.len();
    let drawn = Sampler::new(0).order(0, dataset.samples.len());
    let grouped = data::grouped(&drawn, BATCH, length);
    let shares = [
        data::padding(&drawn, BATCH, &length),
        data::padding(&grouped, BATCH, &length),
        data::left_over(&drawn, BATCH, &length),
    ];
    let [plain, grouped, packed] = shares.map(|share| format!("{:.1} %", 100.0 * share));
    match shares[0] > 0.0 {
        true => format!(
            "padding in batches of {BATCH}: {plain} as drawn, {grouped} where lengths are alike, {packed} where samples \
             share rows (compile --packing)\n"
        ),
        false => String::new(),
    }
}

fn summary(dataset: &data::Dataset) -> String {
    let mut lengths: Vec<usize> = dataset.samples.iter().map(|s| s.tokens.len()).collect();
    lengths.sort_unstable();
    let answers: usize = dataset.samples.iter().map(|s| s.total - s.prompt).sum();
    let (count, tokens) = (lengths.len(), lengths.iter().sum::<usize>());
    let middle = lengths.get(count / 2).copied().unwrap_or(0);
    let (least, most) = (lengths.first().copied().unwrap_or(0), lengths.last().copied().unwrap_or(0));
    let cut = if dataset.cut > 0 { format!("; --max-length cut {}", dataset.cut) } else { String::new() };
    format!(
        "{count} samples, {tokens} tokens, {answers} of them answer; {least} to {most} a sample, median {middle}{cut}\n"
    )
}
