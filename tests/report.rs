//! The page of runs.

mod program;

use program::weftc;

#[test]
fn runs_stand_side_by_side_in_one_file_that_asks_for_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    for (name, lr) in [("a<b", 1e-3), ("second", 2e-3)] {
        let out = folder.path().join(name);
        std::fs::create_dir(&out).unwrap();
        // Long enough that curves are thinned; the last line has broken off.
        let line = |k: i32| {
            let outcome = if k == 7 { "skipped" } else { "updated" };
            let loss = if k == 7 { "null".into() } else { format!("{}", 5.0 / f64::from(k).sqrt()) };
            format!(
                "{{\"step\":{k},\"loss\":{loss},\"grad_norm\":0.5,\"lr\":{lr},\"tokens\":100,\"seconds\":0.5,\
                 \"outcome\":\"{outcome}\"}}\n"
            )
        };
        let lines: String = (1..=20_000).map(line).collect();
        std::fs::write(out.join("metrics.jsonl"), lines + "{\"step\":20").unwrap();
        std::fs::write(out.join("run.toml"), format!("lr = {lr:?}\nseed = 0\n")).unwrap();
    }
    let (code, _, errors) = weftc(&["report", &path("a<b"), &path("second"), "-o", &path("report.html")]);
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    let html = std::fs::read_to_string(folder.path().join("report.html")).unwrap();
    assert!(html.len() < 200_000, "{} bytes", html.len());
    assert!(["http:", "https:", "src=", "@import", "url(", "NaN", "a<b"].iter().all(|w| !html.contains(w)));
    // Two curves, each over its points, in each of four charts; and two keys.
    assert_eq!((html.matches("<figure>").count(), html.matches("<polyline").count()), (4, 2 * 4 * 2 - 2 + 2));
    assert!(
        html.contains("<tr class=\"differs\"><th scope=\"row\">lr (differs)</th><td>0.001</td><td>0.002</td></tr>")
    );
    assert!(html.contains("<td>20000</td><td>1</td><td>0</td>"), "steps, skipped, empty");
    let (code, _, errors) = weftc(&["report", &path("nothing"), "-o", &path("other.html")]);
    assert!(code == Some(2) && errors.contains("there is no metrics.jsonl"), "{code:?}: {errors}");
}
