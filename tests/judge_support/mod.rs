//! What the judge's tests and its benchmark share: a mix of short correct programs.

use codeseq::sandbox::Case;
use num_bigint::BigInt;
use num_traits::One;

/// A correct program with its cases.
pub(crate) struct Solved {
    /// Python source.
    pub(crate) code: String,
    /// Inputs and right outputs.
    pub(crate) cases: Vec<Case>,
}

type Term = fn(i64, i64, i64) -> BigInt;

/// Kinds of programs: source with `A` and `B` to fill in, and the term it computes.
const KINDS: [(&str, Term); 16] = [
    ("n = int(input())\nprint(A * n + B)", |a, b, n| big(a * n + b)),
    (
        "import sys\nn = int(sys.stdin.readline())\nsys.stdout.write(f\"{A * n * n + B * n}\\n\")",
        |a, b, n| big(a * n * n + b * n),
    ),
    (
        "def f(n):\n    return n ** 3 + A * n - B\n\nif __name__ == '__main__':\n    print(f(int(input())))",
        |a, b, n| big(n * n * n + a * n - b),
    ),
    (
        "n = int(input())\nx, y = A, B\nfor _ in range(n):\n    x, y = y, x + y\nprint(x)",
        |a, b, n| recurrence(a, b, 1, 1, n),
    ),
    (
        "from functools import lru_cache\n@lru_cache(None)\ndef f(n):\n    return [A, B][n] if n < 2 else 2 * f(n - 1) + 3 * f(n - 2)\nprint(f(int(input())))",
        |a, b, n| recurrence(a, b, 2, 3, n),
    ),
    ("n = int(open(0).read())\nprint(sum(A * k + B for k in range(1, n + 1)))", |a, b, n| {
        big((1..=n).map(|k| a * k + b).sum())
    }),
    ("import math\nn = int(input())\nprint(math.factorial(n) * A + B)", |a, b, n| {
        (1..=n).map(big).product::<BigInt>() * a + b
    }),
    ("n = int(input())\nprint((A + 1) ** n + B)", |a, b, n| big(a + 1).pow(n as u32) + b),
    ("from math import comb\nn = int(input())\nprint(comb(2 * n, n) + A - B)", |a, b, n| {
        (1..=n).fold(BigInt::one(), |c, k| c * (n + k) / k) + a - b
    }),
    ("n = int(input())\nprint(sum(map(int, str(A * n ** 5 + B))))", |a, b, n| {
        big((a * n.pow(5) + b).to_string().bytes().map(|d| i64::from(d - b'0')).sum())
    }),
    ("import math\nn = int(input())\nprint(math.gcd(A * n, B * (n + 6)))", |a, b, n| {
        big(num_integer::gcd(a * n, b * (n + 6)))
    }),
    (
        "n = int(input()) + A\ntotal = 0\nd = 1\nwhile d <= n:\n    if n % d == 0:\n        total += d\n    d += 1\nprint(total + B)",
        |a, b, n| big((1..=n + a).filter(|d| (n + a) % d == 0).sum::<i64>() + b),
    ),
    (
        "n = int(input())\nx, steps = n + A, 0\nwhile x != 1:\n    x = x // 2 if x % 2 == 0 else 3 * x + 1\n    steps += 1\nprint(steps * B)",
        |a, b, n| {
            let (mut x, mut steps) = (n + a, 0);
            while x != 1 {
                x = if x % 2 == 0 { x / 2 } else { 3 * x + 1 };
                steps += 1;
            }
            big(steps * b)
        },
    ),
    (
        "from itertools import accumulate\nn = int(input())\nterms = list(accumulate(range(A, A + n + 1)))\nprint(terms[-1] - B)",
        |a, b, n| big((a..=a + n).sum::<i64>() - b),
    ),
    (
        "from fractions import Fraction\nn = int(input())\ntotal = sum(Fraction(1, k * (k + 1)) for k in range(1, n + 1))\nprint(total.numerator * A + total.denominator * B)",
        |a, b, n| big(n * a + (n + 1) * b),
    ),
    (
        "class Walk:\n    def __init__(self):\n        self.seen = {}\n\n    def ways(self, n):\n        if n < 2:\n            return 1\n        if n not in self.seen:\n            self.seen[n] = sum(self.ways(i) * self.ways(n - 1 - i) for i in range(n))\n        return self.seen[n]\n\nprint(Walk().ways(int(input())) + A + B)",
        |a, b, n| {
            let catalan = (1..=n).fold(BigInt::one(), |c, k| c * (4 * k - 2) / (k + 1));
            catalan + a + b
        },
    ),
];

fn big(value: i64) -> BigInt {
    BigInt::from(value)
}

fn recurrence(a: i64, b: i64, p: i64, q: i64, n: i64) -> BigInt {
    let (mut x, mut y) = (big(a), big(b));
    for _ in 0..n {
        (x, y) = (y.clone(), y * p + x * q);
    }
    x
}

/// `count` different correct programs of 16 kinds, each with 7 cases.
pub(crate) fn mix(count: usize) -> Vec<Solved> {
    (0..count as i64)
        .map(|i| {
            let (source, term) = KINDS[i as usize % KINDS.len()];
            let (a, b) = (i / 16 % 11 + 1, i / 176 % 13 + 1);
            let first = i % 5 + 1;
            let cases = (first..first + 7)
                .map(|n| Case { input: n.to_string(), output: term(a, b, n).to_string() })
                .collect();
            let code = source.replace('A', &a.to_string()).replace('B', &b.to_string());
            Solved { code, cases }
        })
        .collect()
}
