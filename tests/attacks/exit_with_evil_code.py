# expect: runtime_error|wrong_answer|cpu_time
class Evil:
    def __eq__(self, other):
        return True
raise SystemExit(Evil())
