# expect: runtime_error
class Evil(Exception):
    def __str__(self):
        raise BaseException
raise Evil
