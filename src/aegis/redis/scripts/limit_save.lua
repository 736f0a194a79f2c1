-- The end of the limit scripts that write: keep the state if it was `changed`, and answer `reply`.
-- The keys live until nothing in them can matter any more: a little longer, so that this need not be said with every
-- permit, but it is when a key is new (`born`).
if changed then
  local matters = max(newest, held, now, crowd) + widest
  local longer = matters > lives
  if longer then lives = matters + 1000000 + min(widest, 60000000) end
  record = struct.pack(STATE, LAYOUT, now, skew, held, newest, used, oldest, counted, widest, lives, crowd, passed1,
    passed2, server)
  if longer or born then
    local life = ceil((lives - now) / 1000)
    call('SET', state, record, 'PX', life)
    call('PEXPIRE', ring, life)
    call('PEXPIRE', turns, life)
  else
    call('SET', state, record, 'KEEPTTL')
  end
end
return reply
