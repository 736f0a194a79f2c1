-- The book of quotes, daily bars and disclosures that the collectors write.

create table quotes (
    code        text        primary key,
    price       bigint      not null,
    change      bigint,
    volume      bigint,
    source      text        not null,
    observed_at timestamptz not null
);

create table daily_prices (
    code   text   not null,
    date   date   not null,
    open   bigint not null,
    high   bigint not null,
    low    bigint not null,
    close  bigint not null,
    volume bigint not null,
    amount bigint,
    primary key (code, date)
);

create table disclosures (
    rcept_no   text primary key,
    corp_code  text not null,
    corp_name  text not null,
    stock_code text,
    report_nm  text not null,
    flr_nm     text,
    rcept_dt   date not null,
    rm         text
);

create index disclosures_by_stock on disclosures (stock_code, rcept_dt);
