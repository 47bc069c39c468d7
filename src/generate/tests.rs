use super::*;

const MASK: i64 = 3;

/// Logits over four tokens: `score` gives the favoured token of each position and how strongly.
fn model(score: impl Fn(usize) -> (usize, f32)) -> impl FnMut(&[i64], usize, usize) -> Result<Vec<f32>> {
    move |tokens, batch, len| {
        assert_eq!(tokens.len(), batch * len);
        let mut z = vec![0.0; tokens.len() * 4];
        (0..tokens.len()).for_each(|p| z[p * 4 + score(p).0] = score(p).1);
        Ok(z)
    }
}

/// The tokens that the model was shown at each call.
fn trace(row: &[i64], decoding: &Decoding, score: impl Fn(usize) -> (usize, f32)) -> Vec<Vec<i64>> {
    let mut seen = Vec::new();
    let mut inner = model(score);
    let mut spy = |tokens: &[i64], b, l| {
        seen.push(tokens.to_vec());
        inner(tokens, b, l)
    };
    let last = decode(&mut spy, row, row.len(), decoding).unwrap();
    seen.push(last);
    seen
}

#[test]
fn the_most_confident_positions_come_first_and_ties_go_left() {
    let confidence = [9.0, 1.0, 5.0, 5.0, 2.0, 5.0];
    let seen = trace(&[0, MASK, MASK, MASK, MASK, MASK], &Decoding::new(MASK, 3), |p| (p % 3, confidence[p]));
    // Five positions in three steps: two, two, one.
    let expected = [
        vec![0, MASK, MASK, MASK, MASK, MASK],
        vec![0, MASK, 2, 0, MASK, MASK],
        vec![0, MASK, 2, 0, 1, 2],
        vec![0, 1, 2, 0, 1, 2],
    ];
    assert_eq!(seen, expected);
}

#[test]
fn blocks_fill_from_the_left() {
    let decoding = Decoding { block_length: Some(2), ..Decoding::new(MASK, 1) };
    let seen = trace(&[MASK, MASK, MASK], &decoding, |p| (1, p as f32 + 1.0));
    assert_eq!(seen, [vec![MASK, MASK, MASK], vec![1, 1, MASK], vec![1, 1, 1]]);
}

#[test]
fn the_mask_is_never_written_and_candidates_bind() {
    let row = [MASK, 0];
    let any = decode(&mut model(|_| (3, 9.0)), &row, 2, &Decoding::new(MASK, 1)).unwrap();
    assert_eq!(any, [0, 0]);
    let decoding = Decoding { candidates: Some(2..4), ..Decoding::new(MASK, 1) };
    assert_eq!(decode(&mut model(|_| (1, 9.0)), &row, 2, &decoding).unwrap(), [2, 0]);
    let nothing = Decoding { candidates: Some(3..9), ..Decoding::new(MASK, 1) };
    assert!(decode(&mut model(|_| (1, 9.0)), &row, 2, &nothing).is_err());
}

#[test]
fn shifted_logits_stay_in_their_row() {
    let decoding = Decoding { logits_shift: 1, ..Decoding::new(MASK, 1) };
    let filled = decode(&mut model(|p| (p % 3, 5.0)), &[MASK, MASK, MASK, MASK], 2, &decoding).unwrap();
    assert_eq!(filled, [0, 0, 2, 2]);
}

#[test]
fn rows_of_different_fill_and_more_steps_than_positions() {
    let filled = decode(&mut model(|_| (1, 5.0)), &[0, 2, MASK, MASK], 2, &Decoding::new(MASK, 8)).unwrap();
    assert_eq!(filled, [0, 2, 1, 1]);
}

#[test]
fn bad_requests_are_errors() {
    let mut fine = model(|_| (1, 5.0));
    assert!(decode(&mut fine, &[MASK; 3], 2, &Decoding::new(MASK, 0)).is_err_and(|e| match e {
        Error::Usage { problems } => problems.len() == 2,
        _ => false,
    }));
    let mut nan = |_: &[i64], _, _| Ok(vec![f32::NAN; 8]);
    assert!(decode(&mut nan, &[MASK, MASK], 2, &Decoding::new(MASK, 1)).is_err());
    let mut short = |_: &[i64], _, _| Ok(vec![0.0; 3]);
    assert!(decode(&mut short, &[MASK, MASK], 2, &Decoding::new(MASK, 1)).is_err());
}
/// Four tokens whose logits fall with the token's number, the same everywhere.
fn falling(tokens: &[i64], _: usize, _: usize) -> Result<Vec<f32>> {
    Ok(tokens.iter().flat_map(|_| [2.0, 1.0, 0.0, 9.0]).collect())
}

#[test]
fn the_end_of_text_can_be_barred_put_off_and_ends_a_row() {
    let row = [MASK; 4];
    let of = |decoding: Decoding| decode(&mut falling, &row, 4, &decoding).unwrap();
    let base = || Decoding { eos_ids: vec![0], ..Decoding::new(MASK, 2) };
    assert_eq!(of(base()), [0; 4]);
    assert_eq!(of(Decoding { eos: Eos::Suppress, ..base() }), [1; 4]);
    // Position 2 has another favourite: it comes first although its confidence is lower.
    let mut mixed = |tokens: &[i64], _: usize, _: usize| -> Result<Vec<f32>> {
        let z = |p: usize| if p == 2 { [0.0, 0.5, 0.0, 0.0] } else { [5.0, 0.0, 0.0, 0.0] };
        Ok((0..tokens.len()).flat_map(z).collect())
    };
    let mut seen = Vec::new();
    let late = Decoding { eos: Eos::Late, ..Decoding { steps: 4, ..base() } };
    decode_watched(&mut mixed, &row, 4, &late, &mut |t| {
        seen.push(t.to_vec());
        Ok(())
    })
    .unwrap();
    assert_eq!(seen[0], [MASK, MASK, 1, MASK]);
    let mut calls = 0;
    let mut counted = |tokens: &[i64], b: usize, l: usize| {
        calls += 1;
        falling(tokens, b, l)
    };
    let stop = Decoding { stop: true, block_length: Some(1), steps: 1, ..base() };
    assert_eq!(decode(&mut counted, &row, 4, &stop).unwrap(), [0; 4]);
    assert_eq!(calls, 1);
}

#[test]
fn a_threshold_takes_all_that_are_sure_and_always_one() {
    let decoding = Decoding { remasking: Remasking::Threshold(0.9), ..Decoding::new(MASK, 1) };
    let confidence = [9.0, 9.0, 1.0, 0.5];
    let seen = trace(&[MASK; 4], &decoding, |p| (1, confidence[p]));
    assert_eq!(seen[1], [1, 1, MASK, MASK]);
    assert_eq!(seen.len(), 4);
}

#[test]
fn draws_belong_to_the_row_not_to_the_batch() {
    for draw in [Draw::Gumbel, Draw::Categorical] {
        for remasking in [Remasking::Random, Remasking::Origin, Remasking::LowConfidence] {
            let decoding =
                Decoding { draw, remasking, temperature: 1.0, alg_temp: Some(0.5), seed: 7, ..Decoding::new(MASK, 3) };
            let both = decode(&mut falling, &[MASK; 12], 6, &decoding).unwrap();
            let second = Decoding { rows: vec![1], ..decoding.clone() };
            assert_eq!(both[6..], decode(&mut falling, &[MASK; 6], 6, &second).unwrap());
            assert_ne!(both[..6], both[6..], "{draw:?} {remasking:?}");
            assert!(both.iter().all(|t| *t != MASK));
        }
    }
}

#[test]
fn settings_out_of_range_are_all_told() {
    let wrong = Decoding {
        temperature: -1.0,
        top_p: Some(0.0),
        top_k: Some(0),
        alg_temp: Some(f64::NAN),
        remasking: Remasking::Threshold(2.0),
        schedule: Schedule::Timesteps { eps: 0.0 },
        stop: true,
        ..Decoding::new(MASK, 1)
    };
    let error = decode(&mut falling, &[MASK], 1, &wrong).unwrap_err().to_string();
    for place in ["temperature", "top-p", "top-k", "alg-temp", "threshold", "eps", "eos"] {
        assert!(error.contains(&format!("  {place}: ")), "no {place} in {error}");
    }
}
