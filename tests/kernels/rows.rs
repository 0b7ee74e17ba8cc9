//! This file tests norms, sums over rows, and the scores of rows of logits.

use crate::compare::{FORMATS, WIDE, assert_close, bits, on_every_order};
use crate::cuda::half::{Half, HalfFormat};
use crate::cuda::kernels::column_sums::{PARTS, SumOverRows, parts};
use crate::cuda::kernels::logprob::{ScoreGradient, Shape, Statistics};
use crate::cuda::kernels::rms_norm::{Norm, NormBackward};
use crate::cuda::kernels::rope::Heads;
use codeseq::ops;

const EPS: f32 = 1e-5;

/// Returns the norms of x + residual, `[rows, width]`; the sum is rounded as it is stored.
fn expected_norm(
    format: HalfFormat,
    x: &[Half],
    residual: &[Half],
    weight: &[Half],
) -> (Vec<Half>, Vec<f32>) {
    let sum: Vec<f32> =
        x.iter().zip(residual).map(|(&x, &r)| format.widen(x) + format.widen(r)).collect();
    let sum = format.narrow_all(&sum);
    let mut y = vec![0.0; x.len()];
    ops::rms_norm::rms_norm(&format.widen_all(&sum), &format.widen_all(weight), EPS, &mut y);
    (sum, y)
}

#[test]
fn rms_norm_adds_the_residual_and_normalises_the_rounded_sum() {
    for format in FORMATS {
        for (width, rows) in [(4096, 17), (3584, 2), (8192, 1), (192, 5), (8, 3)] {
            let (x, residual) =
                (format.normal(11, rows * width, 2.0), format.normal(12, rows * width, 1.0));
            let weight = format.normal(13, width, 1.0);
            on_every_order(
                format,
                |gpu| {
                    let (kernels, stream) = (&gpu.kernels.rms_norm, &gpu.stream);
                    let weight = gpu.put(&weight);
                    let norm = Norm { weight: weight.slice(), eps: EPS };
                    let (mut source, residual) = (gpu.put(&x), gpu.put(&residual));
                    let [mut plain, mut sum, mut y, mut again] =
                        [(); 4].map(|()| gpu.poisoned::<Half>(rows * width));
                    kernels.forward(stream, norm, source.slice(), plain.slice_mut()).unwrap();
                    let (outputs, y_again) = ((sum.slice_mut(), y.slice_mut()), again.slice_mut());
                    let residual = residual.slice();
                    let x = source.slice();
                    kernels.forward_sum(stream, norm, x, residual, outputs.0, outputs.1).unwrap();
                    kernels
                        .forward_add(stream, norm, source.slice_mut(), residual, y_again)
                        .unwrap();
                    assert_eq!((source.get(), again.get()), (sum.get(), y.get()), "in place");
                    (plain.get(), sum.get(), y.get())
                },
                |(plain, sum, y)| {
                    let zeros = vec![Half::ZERO; rows * width];
                    format.assert_close(
                        "norm",
                        &plain,
                        &expected_norm(format, &x, &zeros, &weight).1,
                    );
                    let (expected_sum, expected) = expected_norm(format, &x, &residual, &weight);
                    assert_eq!(sum, expected_sum);
                    format.assert_close("norm of the sum", &y, &expected);
                },
            );
        }
    }
}

#[test]
fn rms_norm_backward_gives_both_gradients_and_the_output() {
    for format in FORMATS {
        for (width, rows) in [(4096, 3), (3584, 17), (64, PARTS + 37), (8, 1)] {
            let (x, dy) =
                (format.normal(14, rows * width, 2.0), format.normal(15, rows * width, 1.0));
            let (weight, before) =
                (format.normal(16, width, 1.0), format.normal(17, rows * width, 1.0));
            let d_weight_before = format.normal(18, width, 1.0);
            for adds in [true, false] {
                on_every_order(
                    format,
                    |gpu| {
                        let (kernels, stream) = (&gpu.kernels.rms_norm, &gpu.stream);
                        let (x, weight) = (gpu.put(&x), gpu.put(&weight));
                        let norm = Norm { weight: weight.slice(), eps: EPS };
                        let mut partials = gpu.poisoned(PARTS * width);
                        let mut d_weight = gpu.put(&format.widen_all(&d_weight_before));
                        let mut short_d_weight = gpu.put(&d_weight_before);
                        let sums = &gpu.kernels.column_sums;
                        let mut run = |wide: bool| {
                            let mut dy = gpu.put(&dy);
                            let mut dx =
                                if adds { gpu.put(&before) } else { gpu.poisoned(rows * width) };
                            let (x, y, dx_) = (x.slice(), dy.slice_mut(), dx.slice_mut());
                            let rows = NormBackward { x, dy: y, dx: dx_, adds };
                            let partials = partials.slice_mut();
                            match wide {
                                true => {
                                    let gradient = d_weight.slice_mut();
                                    let sum = SumOverRows { kernels: sums, partials, gradient };
                                    kernels.backward(stream, norm, rows, sum)
                                }
                                false => {
                                    let gradient = short_d_weight.slice_mut();
                                    let sum = SumOverRows { kernels: sums, partials, gradient };
                                    kernels.backward(stream, norm, rows, sum)
                                }
                            }
                            .unwrap();
                            (dy.get(), dx.get())
                        };
                        let outputs = run(true);
                        assert!(outputs == run(false), "the same for both gradients");
                        (outputs, d_weight.get(), short_d_weight.get())
                    },
                    |((y, dx), d_weight, short_d_weight)| {
                        let mut expected_y = format.widen_all(&dy);
                        let mut expected_dx =
                            if adds { format.widen_all(&before) } else { vec![0.0; rows * width] };
                        let mut gradient = format.widen_all(&d_weight_before);
                        ops::rms_norm::rms_norm_backward(
                            &format.widen_all(&x),
                            &format.widen_all(&weight),
                            EPS,
                            &mut expected_y,
                            &mut expected_dx,
                            &mut gradient,
                        );
                        format.assert_close("output", &y, &expected_y);
                        format.assert_close("dx", &dx, &expected_dx);
                        assert_close("weight's gradient", &d_weight, &gradient, WIDE);
                        format.assert_close("weight's gradient", &short_d_weight, &gradient);
                    },
                );
            }
        }
    }
}

#[test]
fn head_norm_normalises_every_query_head_and_key_head() {
    for format in FORMATS {
        for (queries, keys, dim, rows) in [(32, 8, 128, 3), (6, 2, 32, 17), (3, 1, 64, PARTS + 37)]
        {
            let heads = Heads { queries, keys, dim };
            let x = format.normal(24, rows * heads.row(), 2.0);
            let (d_out, weight) =
                (format.normal(25, rows * heads.row(), 1.0), format.normal(26, 2 * dim, 1.0));
            let d_weight_before = format.normal(27, 2 * dim, 1.0);
            on_every_order(
                format,
                |gpu| {
                    let (kernels, stream) = (&gpu.kernels.head_norm, &gpu.stream);
                    let weight = gpu.put(&weight);
                    let norm = Norm { weight: weight.slice(), eps: EPS };
                    let (mut source, mut y) = (gpu.put(&x), gpu.poisoned::<Half>(x.len()));
                    kernels.forward(stream, heads, norm, source.slice(), y.slice_mut()).unwrap();
                    let mut d_qkv = gpu.put(&d_out);
                    let mut partials = gpu.poisoned(PARTS * 2 * dim);
                    let mut d_weight = gpu.put(&format.widen_all(&d_weight_before));
                    let sum = SumOverRows {
                        kernels: &gpu.kernels.column_sums,
                        partials: partials.slice_mut(),
                        gradient: d_weight.slice_mut(),
                    };
                    let (before, d) = (source.slice(), d_qkv.slice_mut());
                    kernels.backward(stream, heads, norm, before, d, sum).unwrap();
                    kernels.forward_in_place(stream, heads, norm, source.slice_mut()).unwrap();
                    assert_eq!(source.get(), y.get(), "in place");
                    (y.get(), d_qkv.get(), d_weight.get())
                },
                |(y, d_qkv, d_weight)| {
                    let heads = ops::attention::Heads { queries, keys, dim };
                    let (before, weight) = (format.widen_all(&x), format.widen_all(&weight));
                    let (mut expected, mut d) = (before.clone(), format.widen_all(&d_out));
                    let mut gradient = format.widen_all(&d_weight_before);
                    ops::head_norm::head_norm(heads, &weight, EPS, &mut expected);
                    let sum = &mut gradient;
                    ops::head_norm::head_norm_backward(heads, &weight, EPS, &before, &mut d, sum);
                    format.assert_close("heads", &y, &expected);
                    format.assert_close("d heads", &d_qkv, &d);
                    assert_close("weight's gradient", &d_weight, &gradient, WIDE);
                },
            );
        }
    }
}

#[test]
fn sums_over_rows_are_those_of_the_cpu() {
    for format in FORMATS {
        for (width, rows) in [(4608, 17), (6144, 1), (40, PARTS + 37), (8, 0)] {
            let (x, before) = (format.normal(19, rows * width, 1.0), format.normal(20, width, 1.0));
            on_every_order(
                format,
                |gpu| {
                    let (sums, stream, x) = (&gpu.kernels.column_sums, &gpu.stream, gpu.put(&x));
                    let mut partials = gpu.poisoned(parts(rows) * width);
                    let (mut long, mut short) =
                        (gpu.put(&format.widen_all(&before)), gpu.put(&before));
                    let partials_ = partials.slice_mut();
                    sums.add_sums_of(stream, x.slice(), partials_, long.slice_mut()).unwrap();
                    let partials_ = partials.slice_mut();
                    sums.add_sums_of(stream, x.slice(), partials_, short.slice_mut()).unwrap();
                    (long.get(), short.get())
                },
                |(long, short)| {
                    let mut expected = format.widen_all(&before);
                    ops::reduce::add_rows(&format.widen_all(&x), &mut expected);
                    assert_close("sums", &long, &expected, WIDE);
                    format.assert_close("sums", &short, &expected);
                },
            );
        }
    }
}

/// Makes rows of logits with padding behind them that must not count.
fn logits(format: HalfFormat, shape: Shape, rows: usize, scale: f32) -> Vec<Half> {
    let mut logits = format.normal(21, rows * shape.stride, scale);
    for row in logits.chunks_exact_mut(shape.stride) {
        row[shape.vocab..].fill(format.narrow(1000.0));
    }
    logits
}

#[test]
fn scores_of_rows_and_their_gradients_match_the_cpu() {
    for format in FORMATS {
        let shapes = [
            (128_256, 128_256, 2, 1.0, 3.0),
            (152_064, 152_064, 1, 0.7, 6.0),
            (70, 72, 17, 1.3, 2.0),
            (8192 + 3, 8200, 3, 1.0, 4.0),
            (1, 8, 2, 1.0, 1.0),
        ];
        for (vocab, stride, rows, temperature, scale) in shapes {
            let shape = Shape { vocab, stride, temperature };
            let mut logits = logits(format, shape, rows, scale);
            let targets: Vec<u32> = (0..rows).map(|i| ((i * 7919 + 5) % vocab) as u32).collect();
            if vocab > 60 {
                logits[50] = format.narrow(f32::NEG_INFINITY);
            }
            let gradients: Vec<ScoreGradient> = (0..rows)
                .map(|i| ScoreGradient { logp: -1.0, entropy: 0.1 * i as f32, mean_logp: 0.2 })
                .collect();
            on_every_order(
                format,
                |gpu| {
                    let (kernels, stream) = (&gpu.kernels.logprob, &gpu.stream);
                    let (mut short, long) = (gpu.put(&logits), gpu.put(&format.widen_all(&logits)));
                    let (targets, gradients) = (gpu.put(&targets), gpu.put(&gradients));
                    let targets = targets.slice();
                    let mut statistics = gpu.poisoned::<Statistics>(rows);
                    let [mut logp, mut short_logp] = [(); 2].map(|()| gpu.poisoned::<f32>(rows));
                    let (rows_of, logp_of) = (statistics.slice_mut(), short_logp.slice_mut());
                    kernels
                        .forward(stream, shape, short.slice(), targets, rows_of, logp_of)
                        .unwrap();
                    let (rows_of, logp_of) = (statistics.slice_mut(), logp.slice_mut());
                    kernels
                        .forward(stream, shape, long.slice(), targets, rows_of, logp_of)
                        .unwrap();
                    assert_eq!(bits(&short_logp.get()), bits(&logp.get()), "in both formats");
                    let mut d_logits = gpu.poisoned::<Half>(rows * stride);
                    let (by_row, gradients) = (statistics.slice(), gradients.slice());
                    let (long, d) = (long.slice(), d_logits.slice_mut());
                    kernels.backward(stream, shape, long, d, targets, by_row, gradients).unwrap();
                    let own = short.slice_mut();
                    kernels
                        .backward_in_place(stream, shape, own, targets, by_row, gradients)
                        .unwrap();
                    assert_eq!(short.get(), d_logits.get(), "in place");
                    (statistics.get(), logp.get(), d_logits.get())
                },
                |(statistics, logp, d_logits): (Vec<Statistics>, Vec<f32>, Vec<Half>)| {
                    for row in 0..rows {
                        let mut own = format.widen_all(&logits[row * stride..][..vocab]);
                        let expected = ops::logprob::statistics(&own, temperature);
                        let Statistics { max, log_sum, entropy, mean_logp } = statistics[row];
                        let expected_logp = expected.logp(own[targets[row] as usize]);
                        let scores = [
                            (max, expected.max),
                            (log_sum, expected.log_sum),
                            (entropy, expected.entropy),
                            (logp[row], expected_logp),
                        ];
                        for (i, (actual, expected)) in scores.into_iter().enumerate() {
                            let error = (actual - expected).abs();
                            assert!(
                                error <= 1e-5 * expected.abs().max(1.0),
                                "score {i}: {actual}, not {expected}"
                            );
                        }
                        let is_equal = mean_logp == expected.mean_logp;
                        let error = (mean_logp - expected.mean_logp).abs();
                        assert!(is_equal || error <= 1e-5 * expected.mean_logp.abs(), "mean");
                        let ScoreGradient { logp, entropy, mean_logp } = gradients[row];
                        let by_scores = ops::logprob::ScoreGradient { logp, entropy, mean_logp };
                        let target = targets[row];
                        ops::logprob::statistics_backward(&mut own, expected, target, by_scores);
                        let d_row = &d_logits[row * stride..][..stride];
                        format.assert_close("gradient", &d_row[..vocab], &own);
                        assert!(d_row[vocab..].iter().all(|&x| x == Half::ZERO), "padding");
                    }
                },
            );
        }
    }
}
