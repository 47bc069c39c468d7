//! The objective and the optimizer (METHOD.md), row by row on plain numbers where no gradient flows.

use super::args::Args;
use super::elementwise::softmax;
use super::layout::{gather_elements, scatter_add};
use candle_core::{D, Device, Result, Tensor, bail};

fn host(x: &Tensor) -> Result<Vec<f64>> {
    x.flatten_all()?.to_vec1()
}

/// The rows of the last axis.
fn rows(x: &Tensor) -> Result<Vec<Vec<f64>>> {
    let n = x.dim(D::Minus1)?;
    x.contiguous()?.reshape((x.elem_count() / n.max(1), n))?.to_vec2()
}

fn like(values: Vec<f64>, shape: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(values, shape.shape(), &Device::Cpu)
}

pub fn map(x: &Tensor, f: impl Fn(f64) -> f64) -> Result<Tensor> {
    like(host(x)?.into_iter().map(f).collect(), x)
}

/// `H_i = logsumexp z_i - sum softmax(z_i) z_i` in nats, 0 off the answer; a logit of -inf counts 0.
pub fn token_entropy(logits: &Tensor, answer: &Tensor) -> Result<Tensor> {
    let entropy = |z: Vec<f64>| {
        let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = z.iter().map(|v| (v - top).exp()).sum();
        let of = |v: &f64| if *v == f64::NEG_INFINITY { 0.0 } else { (v - top).exp() / sum * (v - top) };
        sum.ln() - z.iter().map(of).sum::<f64>()
    };
    let values = rows(logits)?.into_iter().zip(host(answer)?).map(|(z, a)| if a != 0.0 { entropy(z) } else { 0.0 });
    like(values.collect(), answer)
}

/// `g` of METHOD.md, from the attributes `transform` and `power`.
pub fn transform(a: &Args) -> Result<impl Fn(f64) -> f64 + use<>> {
    let power = a.float("power")?;
    let g: fn(f64, f64) -> f64 = match a.word("transform")? {
        "sqrt" => |h, _| h.sqrt(),
        "linear" => |h, _| h,
        "log1p" => |h, _| h.ln_1p(),
        "pow" => f64::powf,
        other => bail!("unknown transform `{other}`"),
    };
    Ok(move |h: f64| g(h.max(0.0), power))
}

/// The mean of beta over the answer of each sequence or of the batch, `[B, 1]`; 0 for no answer.
pub fn beta_ref(beta: &Tensor, answer: &Tensor, scope: &str) -> Result<Tensor> {
    let (b, a) = (rows(beta)?, rows(answer)?);
    let sum = |b: &[f64], a: &[f64]| b.iter().zip(a).filter(|(_, a)| **a != 0.0).map(|(b, _)| b).sum::<f64>();
    let count = |a: &[f64]| a.iter().filter(|a| **a != 0.0).count() as f64;
    let means: Vec<f64> = match scope {
        "sequence" => b.iter().zip(&a).map(|(b, a)| sum(b, a) / count(a).max(1.0)).collect(),
        "batch" => vec![sum(&b.concat(), &a.concat()) / count(&a.concat()).max(1.0); b.len()],
        other => bail!("unknown scope `{other}`"),
    };
    let n = means.len();
    Tensor::from_vec(means, (n, 1), &Device::Cpu)
}

/// Steps 2 and 3: `t_i = max(1 - (1 - t)^(beta_i / beta_ref), t_floor)` on the answer, 0 off it.
pub fn mask_rate(a: &Args) -> Result<Tensor> {
    let (beta, answer, t) = (a.x(0)?, a.x(1)?, host(a.x(2)?)?);
    let (eps, floor) = (a.float("t_eps")?, a.float("t_floor")?);
    let reference = host(&beta_ref(beta, answer, a.word("scope")?)?)?;
    let (values, answers) = (rows(beta)?, rows(answer)?);
    if t.len() != values.len() {
        bail!("{} times for {} sequences", t.len(), values.len());
    }
    let mut out = Vec::new();
    for (row, t) in t.iter().enumerate() {
        let t = (1.0 - eps) * t + eps;
        for (b, a) in values[row].iter().zip(&answers[row]) {
            let r = if reference[row] == 0.0 { 1.0 } else { b / reference[row] };
            let rate = -(r * (-t).ln_1p()).exp_m1();
            out.push(if *a != 0.0 { rate.max(floor) } else { 0.0 });
        }
    }
    like(out, beta)
}

/// CART: `sum_{j != i} 0.5 p (1-p)^(|i-j|-1) x_j`, of `x` 1 for tokens that are not masked.
pub fn context_weight(x: &Tensor, p: f64) -> Result<Tensor> {
    let near = |i: usize, j: usize| if i == j { 0.0 } else { 0.5 * p * (1.0 - p).powi(i.abs_diff(j) as i32 - 1) };
    let weigh = |row: &Vec<f64>| -> Vec<f64> {
        (0..row.len()).map(|i| row.iter().enumerate().map(|(j, x)| near(i, j) * x).sum()).collect()
    };
    like(rows(x)?.iter().flat_map(weigh).collect(), x)
}

/// Step 4: answer and `u < rate`.
pub fn sample_mask(rate: &Tensor, answer: &Tensor, u: &Tensor) -> Result<Tensor> {
    let masked = host(rate)?.into_iter().zip(host(answer)?).zip(host(u)?);
    like(masked.map(|((r, a), u)| f64::from(a != 0.0 && u < r)).collect(), rate)
}

/// Steps 5 and 6: `rate^-a` where masked, over the answer's length for norm `sequence`.
pub fn loss_weight(rate: &Tensor, mask: &Tensor, answer: &Tensor, norm: &str, a: f64) -> Result<Tensor> {
    let mut out = Vec::new();
    for ((rate, mask), answer) in rows(rate)?.iter().zip(rows(mask)?).zip(rows(answer)?) {
        let length = answer.iter().filter(|a| **a != 0.0).count() as f64;
        let share = match norm {
            "sequence" if length == 0.0 => 0.0,
            "sequence" => 1.0 / length,
            "token" | "masked" => 1.0,
            other => bail!("unknown norm `{other}`"),
        };
        out.extend(rate.iter().zip(mask).map(|(r, m)| if m != 0.0 { r.powf(-a) * share } else { 0.0 }));
    }
    like(out, rate)
}

/// The denominator of the loss.
pub fn loss_count(mask: &Tensor, answer: &Tensor, norm: &str) -> Result<Tensor> {
    let count = |row: &Vec<f64>| row.iter().filter(|a| **a != 0.0).count();
    let (masked, answers): (Vec<usize>, Vec<usize>) =
        (rows(mask)?.iter().map(count).collect(), rows(answer)?.iter().map(count).collect());
    let total = match norm {
        "sequence" => answers.iter().filter(|n| **n > 0).count(),
        "token" => answers.iter().sum(),
        "masked" => masked.iter().sum(),
        other => bail!("unknown norm `{other}`"),
    };
    Tensor::new(total as f64, &Device::Cpu)
}

/// `x` over the share that stays where the draw, an integer modulo `field`, stays; 0 elsewhere.
pub fn dropout(x: &Tensor, rate: &Tensor, draws: &Tensor, field: i64) -> Result<Tensor> {
    let field = field as f64;
    let rate = host(rate)?.first().copied().unwrap_or_default();
    let stay = ((1.0 - rate) * field).ceil();
    let kept = |(x, draw): (f64, f64)| if draw.rem_euclid(field) < stay { x * (field / stay) } else { 0.0 };
    like(host(x)?.into_iter().zip(host(draws)?).map(kept).collect(), x)
}

/// Rows where the weight is 0 are left out before anything is computed, so that they may hold anything.
fn weighted_rows(logits: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let used = weight.unsqueeze(D::Minus1)?.ne(0.0)?.broadcast_as(logits.shape())?.contiguous()?;
    used.where_cond(&logits.contiguous()?, &logits.zeros_like()?)
}

/// `w_i (logsumexp z_i - z_i[x_i])`, 0 where `w_i = 0`.
pub fn weighted_cross_entropy(logits: &Tensor, ids: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let z = weighted_rows(logits, weight)?;
    let top = z.max_keepdim(D::Minus1)?.detach();
    let lse = (z.broadcast_sub(&top)?.exp()?.sum_keepdim(D::Minus1)?.log()? + &top)?;
    let chosen = gather_elements(&z, &ids.unsqueeze(D::Minus1)?, z.rank() - 1)?;
    (lse - chosen)?.squeeze(D::Minus1)? * weight
}

/// `(softmax(z) - onehot(x)) g`, rows of 0 where `g_i = 0`.
pub fn weighted_cross_entropy_grad(logits: &Tensor, ids: &Tensor, g: &Tensor) -> Result<Tensor> {
    let z = weighted_rows(logits, g)?;
    let column = ids.unsqueeze(D::Minus1)?;
    let minus_one = column.ones_like()?.neg()?;
    let slope = scatter_add(&softmax(&z, z.rank() - 1)?, &column, &minus_one, z.rank() - 1)?;
    slope.broadcast_mul(&g.unsqueeze(D::Minus1)?)
}

/// Rows move right by `by`; the first `by` rows are row 0.
pub fn shift_logits(z: &Tensor, by: i64) -> Result<Tensor> {
    let n = z.dim(1)?;
    match by {
        0 => Ok(z.clone()),
        1 if n > 0 => Tensor::cat(&[z.narrow(1, 0, 1)?, z.narrow(1, 0, n - 1)?], 1),
        _ => bail!("logits of length {n} cannot shift by {by}"),
    }
}

/// The transpose: `dz_j = sum of dy_i over the rows i that read row j`.
pub fn shift_logits_grad(dy: &Tensor, by: i64) -> Result<Tensor> {
    let n = dy.dim(1)?;
    match by {
        0 => Ok(dy.clone()),
        1 if n > 0 => {
            let read = (0..n).map(|i| i.saturating_sub(1) as i64).collect::<Vec<_>>();
            dy.zeros_like()?.contiguous()?.index_add(&Tensor::from_vec(read, n, dy.device())?, &dy.contiguous()?, 1)
        }
        _ => bail!("logits of length {n} cannot shift by {by}"),
    }
}

/// AdamW as PyTorch computes it, of `p g m v lr weight_decay beta1 beta2 eps step grad_scale`: the new
/// `p m v`.  The last seven are scalars; `g` is multiplied by `grad_scale` first.
///
/// # Errors
/// Operands that are missing, do not fit, or are no scalars.
pub fn adamw(operands: &[Tensor]) -> std::result::Result<[Tensor; 3], String> {
    let [p, g, m, v, scalars @ ..] = operands else { return Err("adamw takes 11 operands".into()) };
    let update = || -> Result<[Tensor; 3]> {
        let mut numbers = Vec::new();
        for s in scalars {
            numbers.extend(host(s)?);
        }
        let [lr, decay, beta1, beta2, eps, step, scale] = numbers[..] else { bail!("needs seven scalars") };
        let g = g.affine(scale, 0.0)?;
        let m = (m.affine(beta1, 0.0)? + g.affine(1.0 - beta1, 0.0)?)?;
        let v = (v.affine(beta2, 0.0)? + g.sqr()?.affine(1.0 - beta2, 0.0)?)?;
        let (fix1, fix2) = (1.0 - beta1.powf(step), 1.0 - beta2.powf(step));
        let deviation = v.affine(1.0 / fix2, 0.0)?.sqrt()?.affine(1.0, eps)?;
        let p = (p.affine(1.0 - lr * decay, 0.0)? - (&m / deviation)?.affine(lr / fix1, 0.0)?)?;
        Ok([p, m, v])
    };
    update().map_err(|e| format!("adamw: {e}"))
}

/// SGD as PyTorch computes it, of `p g m lr weight_decay momentum nesterov grad_scale`: the new `p m`.  The last five
/// are scalars; `nesterov` counts from 0.5.
///
/// # Errors
/// Operands that are missing, do not fit, or are no scalars.
pub fn sgd(operands: &[Tensor]) -> std::result::Result<[Tensor; 2], String> {
    let [p, g, m, scalars @ ..] = operands else { return Err("sgd takes 8 operands".into()) };
    let update = || -> Result<[Tensor; 2]> {
        let mut numbers = Vec::new();
        for s in scalars {
            numbers.extend(host(s)?);
        }
        let [lr, decay, momentum, nesterov, scale] = numbers[..] else { bail!("needs five scalars") };
        let g = (g.affine(scale, 0.0)? + p.affine(decay, 0.0)?)?;
        let m = (m.affine(momentum, 0.0)? + &g)?;
        let step = if nesterov > 0.5 { (g + m.affine(momentum, 0.0)?)? } else { m.clone() };
        Ok([(p - step.affine(lr, 0.0)?)?, m])
    };
    update().map_err(|e| format!("sgd: {e}"))
}
