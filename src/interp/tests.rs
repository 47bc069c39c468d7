use super::*;
use crate::ir::text::parse;

fn tensor(values: &[f64], shape: &[usize]) -> Tensor {
    Tensor::from_vec(values.to_vec(), shape, &Device::Cpu).unwrap()
}

fn feeds(list: &[(&str, Tensor)]) -> BTreeMap<String, Tensor> {
    list.iter().map(|(n, t)| (n.to_string(), t.clone())).collect()
}

fn values(text: &str, list: &[(&str, Tensor)]) -> BTreeMap<String, Vec<f64>> {
    let outputs = run(&parse(text).unwrap(), &feeds(list)).unwrap();
    outputs.into_iter().map(|(n, t)| (n, t.flatten_all().unwrap().to_vec1().unwrap())).collect()
}

fn close(got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    for (g, w) in got.iter().zip(want) {
        assert!((g - w).abs() < 1e-14, "{got:?} is not {want:?}");
    }
}

#[test]
fn sizes_follow_from_feeds() {
    let text = "(graph g (input x f32 [b s]) (output y (expand (mean x [1]) [b 2*s])) (output tail (slice x 1 1 s 1)))";
    let out = values(text, &[("x", tensor(&[1.0, 3.0, 5.0, 7.0], &[2, 2]))]);
    assert_eq!(out["y"], [2.0, 2.0, 2.0, 2.0, 6.0, 6.0, 6.0, 6.0]);
    assert_eq!(out["tail"], [3.0, 7.0]);
}

#[test]
fn feeds_that_contradict_are_all_listed() {
    let graph = parse(
        "(graph g (input x f32 [b 2]) (input y f32 [b 2*b]) (input z f32 [3]) (output o (add x 1.0)) (output p (add y 1.0)) (output q z))",
    )
    .unwrap();
    let wrong =
        feeds(&[("x", tensor(&[0.0; 4], &[2, 2])), ("y", tensor(&[0.0; 6], &[2, 3])), ("w", tensor(&[], &[0]))]);
    let message = run(&graph, &wrong).unwrap_err().to_string();
    for part in
        ["w: the graph has no such input", "y: has type f32[b 2*b] but shape [2, 3]", "with b=2", "z: is not fed"]
    {
        assert!(message.contains(part), "{part} is missing in\n{message}");
    }
    let other =
        feeds(&[("x", tensor(&[0.0; 4], &[2, 2])), ("y", tensor(&[0.0; 18], &[3, 6])), ("z", tensor(&[0.0; 3], &[3]))]);
    let message = run(&graph, &other).unwrap_err().to_string();
    assert!(message.contains("size b is 3 here but 2 in another input"), "{message}");
}

#[test]
fn an_index_out_of_range_is_an_error() {
    let graph = parse("(graph g (input x f32 [3]) (input i i64 [1]) (output y (gather_elements x i 0)))").unwrap();
    let message = run(&graph, &feeds(&[("x", tensor(&[0.0; 3], &[3])), ("i", tensor(&[3.0], &[1]))])).unwrap_err();
    assert!(message.to_string().contains("index 3 is outside 0..3"), "{message}");
}

#[test]
fn integers_divide_and_convert_towards_zero() {
    let text = "(graph g (input x i64 [2]) (input y f32 [2]) (output q (div x 2)) (output c (cast y i64)) (output b (cast y bool)))";
    let out = values(text, &[("x", tensor(&[-3.0, 5.0], &[2])), ("y", tensor(&[-1.7, 0.0], &[2]))]);
    assert_eq!((&out["q"][..], &out["c"][..], &out["b"][..]), (&[-1.0, 2.0][..], &[-1.0, 0.0][..], &[1.0, 0.0][..]));
}

#[test]
fn a_row_that_is_masked_entirely_attends_to_nothing() {
    let text = "(graph g (input q f32 [2 1]) (input k f32 [2 1]) (input v f32 [2 1]) (input m f32 [2 2])
                 (output y (attention_bias q k v m 1.0)) (output p (attention_probs_bias q k m 1.0)))";
    let inf = f64::NEG_INFINITY;
    let one = tensor(&[1.0, 1.0], &[2, 1]);
    let out = values(
        text,
        &[
            ("q", one.clone()),
            ("k", one),
            ("v", tensor(&[3.0, 5.0], &[2, 1])),
            ("m", tensor(&[inf, inf, 0.0, inf], &[2, 2])),
        ],
    );
    assert_eq!((&out["y"][..], &out["p"][..]), (&[0.0, 3.0][..], &[0.0, 0.0, 1.0, 0.0][..]));
}

/// METHOD.md by hand: uniform logits have entropy log V; equal entropies give `t_i = t`.
#[test]
fn objective_on_uniform_logits() {
    let text = "(graph g (input z f32 [1 2 4]) (input a bool [1 2]) (input t f32 [1]) (input u f32 [1 2]) (input ids i64 [1 2])
      (let h (token_entropy z a)) (let r (mask_rate (beta h sqrt 0.5) a t sequence 0.0 0.0)) (let m (sample_mask r a u))
      (let w (loss_weight r m a sequence 1.0)) (output h h) (output r r) (output m m) (output w w)
      (output loss (weighted_cross_entropy z ids w)) (output grad (weighted_cross_entropy_grad z ids w))
      (output n (loss_count m a sequence)))";
    let out = values(
        text,
        &[
            ("z", tensor(&[7.0; 8], &[1, 2, 4])),
            ("a", tensor(&[1.0, 1.0], &[1, 2])),
            ("t", tensor(&[0.25], &[1])),
            ("u", tensor(&[0.2, 0.3], &[1, 2])),
            ("ids", tensor(&[1.0, 3.0], &[1, 2])),
        ],
    );
    let log4 = 4f64.ln();
    close(&out["h"], &[log4, log4]);
    close(&out["r"], &[0.25, 0.25]);
    assert_eq!(out["m"], [1.0, 0.0]);
    close(&out["w"], &[2.0, 0.0]);
    close(&out["loss"], &[2.0 * log4, 0.0]);
    close(&out["grad"], &[0.5, -1.5, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0]);
    assert_eq!(out["n"], [1.0]);
}

#[test]
fn tokens_without_weight_may_have_any_logits() {
    let text = "(graph g (input z f32 [1 2 2]) (input ids i64 [1 2]) (input w f32 [1 2])
      (output loss (weighted_cross_entropy z ids w)) (output grad (weighted_cross_entropy_grad z ids w)))";
    let z = tensor(&[f64::NAN, f64::INFINITY, 0.0, 0.0], &[1, 2, 2]);
    let out = values(text, &[("z", z), ("ids", tensor(&[0.0, 0.0], &[1, 2])), ("w", tensor(&[0.0, 1.0], &[1, 2]))]);
    close(&out["loss"], &[0.0, 2f64.ln()]);
    close(&out["grad"], &[0.0, 0.0, -0.5, 0.5]);
}

/// Two steps of `torch.optim.AdamW` on one number: lr 0.1, weight decay 0.5, p = 1, gradients 2 and -1.
#[test]
fn adamw_is_pytorchs() {
    let n = |x: f64| tensor(&[x], &[]);
    let (mut p, mut m, mut v) = (n(1.0), n(0.0), n(0.0));
    for (step, g) in [(1.0, 2.0), (2.0, -1.0)] {
        let operands = [p, n(g / 4.0), m, v, n(0.1), n(0.5), n(0.9), n(0.99), n(1e-8), n(step), n(4.0)];
        [p, m, v] = adamw(&operands).unwrap();
    }
    for (got, want) in [(p, 0.7808300577361422), (m, 0.9 * 0.2 - 0.1), (v, 0.99 * 0.04 + 0.01)] {
        assert!((got.to_scalar::<f64>().unwrap() - want).abs() < 1e-13);
    }
}

#[test]
fn tuples_come_out_by_part() {
    let out = values("(graph g (input x f32 [1]) (output t (tuple (neg x) x)))", &[("x", tensor(&[1.0], &[1]))]);
    assert_eq!((&out["t.0"][..], &out["t.1"][..]), (&[-1.0][..], &[1.0][..]));
}
