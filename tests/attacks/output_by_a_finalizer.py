# expect: pass
# cases: 3
class Last:
    def __del__(self):
        print('contained')
last = Last()
last.me = last
